"""Integer weights: the error bound, the grid, and agreement of training's rounding with export's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from he_runtime.model import CompressedModel
from he_runtime.reference import forward
from model_prep.quantize import quantize_array, quantize_model
from model_prep.reference_models import random_reference
from model_prep.trainable import straight_through

VALUES = hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=6), elements=st.floats(-1e3, 1e3, width=32))


@given(values=VALUES, bits=st.integers(2, 16))
@settings(max_examples=200, deadline=None)
def test_the_error_is_at_most_half_a_step(values: npt.NDArray[np.float64], bits: int) -> None:
    integers, step = quantize_array(values, bits)
    limit = 2 ** (bits - 1) - 1
    assert integers.dtype == (np.int8 if bits <= 8 else np.int16)
    assert np.abs(integers.astype(np.int64)).max() <= limit
    assert np.abs(integers * step - values).max() <= step / 2 * (1 + 1e-9)
    assert not integers[values == 0].any()


@given(values=VALUES, bits=st.integers(2, 16))
@settings(max_examples=100, deadline=None)
def test_quantizing_twice_changes_nothing(values: npt.NDArray[np.float64], bits: int) -> None:
    integers, step = quantize_array(values, bits)
    again, _ = quantize_array(integers * step, bits)
    largest = np.abs(integers).max()
    assert np.array_equal(again, integers) or largest < 2 ** (bits - 1) - 1


def test_the_artifact_holds_integers_and_their_steps(tmp_path: object) -> None:
    model = random_reference("digits-mlp")
    keys = ["fc1.weight", "fc2.weight", "fc3.weight"]
    quantized = CompressedModel.load(quantize_model(model, keys, 8).save(str(tmp_path)))
    assert set(quantized.quantization) == set(keys)
    assert all(quantized.arrays[k].dtype == np.int8 for k in keys)
    x = np.random.default_rng(0).normal(size=(4, 1, 8, 8))
    error = np.abs(forward(quantized, x) - forward(model, x)).max()
    assert 0 < error < 0.05 * np.abs(forward(model, x)).max()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_training_rounds_as_export_does(bits: int) -> None:
    values = torch.linspace(-1, 0.7, 101).reshape(-1, 1).requires_grad_()
    rounded = straight_through(values, bits)
    integers, step = quantize_array(values.detach().double().numpy(), bits)
    assert np.abs(rounded.detach().numpy() - integers * step).max() < 1e-6
    rounded.sum().backward()
    assert values.grad is not None and bool((values.grad == 1).all())
