"""Integers in the artifact, and agreement of training's rounding with export's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from he_runtime.model import CompressedModel
from he_runtime.reference import forward
from model_prep.quantize import quantize_model
from model_prep.quantizers import DeviceLevels, Symmetric
from model_prep.reference_models import random_reference
from model_prep.trainable import straight_through


def test_the_artifact_holds_integers_and_their_steps(tmp_path: object) -> None:
    model = random_reference("digits-mlp")
    keys = ["fc1.weight", "fc2.weight", "fc3.weight"]
    quantized = CompressedModel.load(quantize_model(model, dict.fromkeys(keys, Symmetric(8))).save(str(tmp_path)))
    assert set(quantized.quantization) == set(keys)
    assert all(quantized.arrays[k].dtype == np.int8 for k in keys)
    x = np.random.default_rng(0).normal(size=(4, 1, 8, 8))
    error = np.abs(forward(quantized, x) - forward(model, x)).max()
    assert 0 < error < 0.05 * np.abs(forward(model, x)).max()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_training_rounds_as_export_does(bits: int) -> None:
    values = torch.linspace(-1, 0.7, 101).reshape(-1, 1).requires_grad_()
    rounded = straight_through(values, bits)
    exported = Symmetric(bits).project(values.detach().double().numpy())
    assert np.abs(rounded.detach().numpy() - exported.values).max() < 1e-6
    rounded.sum().backward()
    assert values.grad is not None and bool((values.grad == 1).all())


def test_levels_that_are_no_multiples_of_a_step_stay_real() -> None:
    model = random_reference("digits-mlp")
    levels = DeviceLevels(bits=3, mode="single")
    quantized = quantize_model(model, {"fc2.weight": levels})
    assert not quantized.quantization and quantized.arrays["fc2.weight"].dtype == np.float64
    wanted = levels.project(np.asarray(model.arrays["fc2.weight"], dtype=np.float64)).values
    assert np.array_equal(quantized.arrays["fc2.weight"], wanted)


def test_integers_of_an_older_step_are_read_with_it() -> None:
    model = quantize_model(random_reference("digits-mlp"), {"fc2.weight": Symmetric(8)})
    again = quantize_model(model, {"fc2.weight": Symmetric(4)})
    real = np.asarray(model.arrays["fc2.weight"], dtype=np.float64) * model.quantization["fc2.weight"]
    got = np.asarray(again.arrays["fc2.weight"], dtype=np.float64) * again.quantization["fc2.weight"]
    assert 0 < np.abs(got - real).max() <= again.quantization["fc2.weight"] / 2 * (1 + 1e-9)
