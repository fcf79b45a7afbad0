"""Quantizers: nearest levels, error bounds, masks, and scales that no rival scale beats."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from he_runtime.errors import ModelError
from model_prep.quantizers import (
    AlphaQ,
    Asymmetric,
    Binary,
    DeviceLevels,
    PowerOfTwo,
    Quantized,
    Quantizer,
    Symmetric,
    Ternary,
)

Floats = npt.NDArray[np.float64]
VALUES = hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=6), elements=st.floats(-1e3, 1e3, width=32))
SEEDS = st.integers(0, 2**32 - 1)
QUANTIZERS: st.SearchStrategy[Quantizer] = st.one_of(
    st.builds(Symmetric, st.integers(2, 10)),
    st.builds(Asymmetric, st.integers(2, 10)),
    st.builds(AlphaQ, st.integers(2, 8)),
    st.builds(PowerOfTwo, st.integers(2, 5)),
    st.builds(DeviceLevels, st.integers(1, 6), st.sampled_from(["pair", "single"])),
    st.sampled_from([Binary(), Ternary()]),
)


def _grid(quantizer: Quantizer, quantized: Quantized, masked: bool) -> Floats:
    """The real values that a weight may take, written out from the definitions and the scale alone."""
    match quantizer:
        case Asymmetric(bits):
            levels = np.arange(2**bits) - quantized.zero_point + 0.0
        case Symmetric(bits) | AlphaQ(bits):
            levels = np.arange(2.0 ** (bits - 1))
        case PowerOfTwo(bits):
            levels = np.concatenate([[0], 2.0 ** np.arange(2 ** (bits - 1) - 1)])
        case DeviceLevels(bits, "pair", low, high):
            levels = np.arange(2**bits) * (high - low) / (2**bits - 1)
        case DeviceLevels(bits, _, low, high):
            levels = low + np.arange(2**bits) * (high - low) / (2**bits - 1)
        case _:
            levels = np.array([1.0]) if isinstance(quantizer, Binary) else np.array([0.0, 1.0])
    levels = np.unique(levels if isinstance(quantizer, Asymmetric) else np.concatenate([-levels, levels]))
    return quantized.scale * (levels[levels != 0] if masked else levels)


@given(quantizer=QUANTIZERS, values=VALUES, seed=st.none() | SEEDS)
@settings(max_examples=500, deadline=None)
def test_every_weight_takes_the_nearest_level(quantizer: Quantizer, values: Floats, seed: int | None) -> None:
    mask = None if seed is None else np.random.default_rng(seed).random(values.shape) < 0.6
    quantized = quantizer.project(values, mask)
    grid = _grid(quantizer, quantized, masked=mask is not None)
    alive = np.ones(values.shape, dtype=np.bool_) if mask is None else mask
    assert quantized.levels.dtype == np.int64
    assert quantized.levels.shape == values.shape
    assert not quantized.values[~alive].any()
    distance = np.abs(values[alive][:, None] - grid[None, :]).min(axis=1, initial=np.inf)
    error = np.abs(quantized.values - values)[alive]
    slack = 1e-9 * (np.abs(values).max() + 1e-300)
    if isinstance(quantizer, Asymmetric):  # the zero point is rounded too, which moves the ends by half a step
        assert (error <= distance + quantized.scale * (1e-9 if mask is None else 1 + 1e-9)).all()
    else:
        assert (error <= distance + slack).all()
    if mask is not None and quantized.scale:
        assert (quantized.levels[mask] != quantized.zero_point).all()


@given(quantizer=QUANTIZERS, values=VALUES)
@settings(max_examples=200, deadline=None)
def test_projecting_twice_changes_nothing(quantizer: Quantizer, values: Floats) -> None:
    once = quantizer.project(values).values
    if isinstance(quantizer, Asymmetric):  # its range may shrink by the rounding of the zero point
        return
    assert np.allclose(quantizer.project(once).values, once, rtol=1e-9, atol=1e-9 * np.abs(values).max())


@given(values=VALUES, bits=st.integers(2, 16))
@settings(max_examples=200, deadline=None)
def test_symmetric_levels_are_within_half_a_step_and_zeros_stay(values: Floats, bits: int) -> None:
    quantized = Symmetric(bits).project(values)
    assert np.abs(quantized.levels).max() <= 2 ** (bits - 1) - 1 and not quantized.levels[values == 0].any()
    assert np.array_equal(quantized.compact(), quantized.levels)
    assert np.abs(quantized.values - values).max() <= quantized.scale / 2 * (1 + 1e-9)


@given(values=VALUES, bits=st.integers(2, 16))
@settings(max_examples=200, deadline=None)
def test_asymmetric_errs_by_half_a_step_and_holds_zero_exactly(values: Floats, bits: int) -> None:
    quantized = Asymmetric(bits).project(values)
    assert 0 <= quantized.zero_point < 2**bits
    assert quantized.levels.min() >= 0
    assert quantized.levels.max() < 2**bits
    assert np.abs(quantized.values - values).max() <= quantized.scale / 2 * (1 + 1e-6)
    assert not quantized.values[values == 0].any()


def test_asymmetric_spends_its_levels_on_the_side_that_is_used() -> None:
    values = np.random.default_rng(0).random(1000)
    assert Asymmetric(4).grid(0.5, 3.0) == (0.2, 0)
    assert Asymmetric(4).grid(-1.0, 2.0) == (0.2, 5)
    assert Asymmetric(4).grid(0.0, 0.0)[1] == 0
    errors = [float(np.abs(q.project(values).values - values).max()) for q in (Asymmetric(4), Symmetric(4))]
    assert errors[0] < 0.55 * errors[1]


def test_a_survivor_near_zero_takes_a_level_that_exists() -> None:
    everything = np.ones(2, dtype=np.bool_)
    assert Asymmetric(4).project([-1e-3, 1.0], everything).levels.tolist() == [1, 15]
    assert Asymmetric(4).project([1e-3, -1.0], everything).levels.tolist() == [14, 0]


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_no_rival_scale_beats_the_fitted_one(bits: int) -> None:
    values = np.random.default_rng(bits).standard_normal(5000)
    limit = 2 ** (bits - 1) - 1
    error = float(np.square(AlphaQ(bits).project(values).values - values).sum())
    for scale in np.linspace(0.02, 1.2, 400) * np.abs(values).max() / limit:
        rival = scale * np.clip(np.rint(values / scale), -limit, limit)
        assert error <= np.square(rival - values).sum() * 1.02


def test_many_starts_escape_the_clipped_optimum_at_eight_bits() -> None:
    """From the start mean|w| / (q / 2) the largest weights stay clipped; 0.009 is what 8 bits can do."""
    values = np.random.default_rng(0).standard_normal(20_000)
    quantized = AlphaQ(8).project(values)
    alpha = float(np.abs(values).mean()) / (127 / 2)
    for _ in range(6):
        levels = np.clip(np.rint(values / alpha), -127, 127)
        alpha = float(values @ levels / (levels @ levels))
    single, many = (np.linalg.norm(v - values) / np.linalg.norm(values) for v in (alpha * levels, quantized.values))
    assert single > 4 * many
    assert many < 0.0095


@given(values=VALUES, seed=SEEDS)
@settings(max_examples=100, deadline=None)
def test_binary_has_one_magnitude_and_it_is_the_best(values: Floats, seed: int) -> None:
    mask = np.random.default_rng(seed).random(values.shape) < 0.7
    for quantized, alive in ((Binary().project(values), values), (Binary().project(values, mask), values[mask])):
        magnitudes = np.unique(np.abs(quantized.values[quantized.levels != 0]))
        assert len(magnitudes) <= 1
        assert quantized.scale == pytest.approx(np.abs(alive).mean() if alive.size else 0.0)
    assert np.array_equal(Ternary().project(values, mask).values, Binary().project(values, mask).values)


@given(values=hnp.arrays(np.float64, st.integers(1, 7), elements=st.floats(-9, 9, width=16)))
@settings(max_examples=100, deadline=None)
def test_ternary_is_the_best_of_all_supports(values: Floats) -> None:
    quantized = Ternary().project(values)
    best = np.square(values).sum()
    for code in range(1, 2**values.size):
        support = (code >> np.arange(values.size)) & 1 == 1
        alpha = np.abs(values[support]).mean()
        best = min(best, np.square(np.where(support, alpha * np.sign(values), 0) - values).sum())
    assert np.square(quantized.values - values).sum() == pytest.approx(best, abs=1e-9)
    assert (np.abs(values[quantized.levels == 0]) <= quantized.scale / 2 * (1 + 1e-12)).all()


@given(values=VALUES, bits=st.integers(2, 5))
@settings(max_examples=100, deadline=None)
def test_powers_of_two_are_powers_of_two(values: Floats, bits: int) -> None:
    levels = np.abs(PowerOfTwo(bits).project(values).levels)
    assert (levels & (levels - 1) == 0).all()
    assert levels.max() <= 2 ** (2 ** (bits - 1) - 2)


@given(values=VALUES, bits=st.integers(1, 5), mode=st.sampled_from(["pair", "single"]), seed=SEEDS)
@settings(max_examples=200, deadline=None)
def test_devices_hold_what_the_levels_say(values: Floats, bits: int, mode: str, seed: int) -> None:
    devices = DeviceLevels(bits, mode)
    mask = np.random.default_rng(seed).random(values.shape) < 0.7
    quantized = devices.project(values, mask)
    positive, negative = devices.devices(quantized)
    assert np.allclose(quantized.scale * (positive - negative), quantized.values, rtol=1e-9)
    allowed = devices.conductances if mode == "pair" else np.append(devices.conductances, 0.0)
    for conductance in (positive, negative):
        assert np.isin(conductance, allowed).all()
    assert devices.conductances[0] == devices.low
    assert devices.conductances[-1] == pytest.approx(devices.high)
    if mode == "single":
        assert not (positive[~mask].any() or negative[~mask].any())
        assert ((positive > 0) ^ (negative > 0))[mask].all()


def test_a_single_device_has_no_zero_and_a_pair_has() -> None:
    values = np.array([1.0, -0.5, 1e-7, 0.0, -1e-7])
    assert np.count_nonzero(DeviceLevels(4, "single").project(values).levels) == 5
    assert DeviceLevels(4, "single").project(values).levels.tolist()[2:] == [1, 1, -1]
    assert np.count_nonzero(DeviceLevels(4, "pair").project(values).levels) == 2


def test_compact_levels_are_the_smallest_integers() -> None:
    for largest, kind in ((127, np.int8), (128, np.int16), (40_000, np.int32)):
        compact = Quantized(np.array([largest, -largest]), 1.0).compact()
        assert compact.dtype == kind
        assert compact.tolist() == [largest, -largest]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Symmetric(1), "cannot quantize to 1 bits"),
        (lambda: PowerOfTwo(6), "need 2..5"),
        (lambda: DeviceLevels(4, "triple"), "need 'pair' or 'single'"),
        (lambda: DeviceLevels(4, "pair", 1.0, 0.5), "need 0 < low < high"),
        (lambda: Binary().project([1.0, float("nan")]), "NaN or infinite"),
        (lambda: Binary().project(np.ones(3), np.ones(2, dtype=np.bool_)), r"mask of shape \(2,\)"),
    ],
)
def test_what_cannot_be_quantized_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build()
