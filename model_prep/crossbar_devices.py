"""What a network costs on memristor crossbars, and what it still knows when no device is exactly what it should be.

Yuan et al., ISLPED 2019, arXiv 1908.11691. Costs are for ratios only: the converters' energies are assumptions of the
project, of the order of published designs, and no figure in joules is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel
from he_runtime.reference import forward

from .graph import weight_keys
from .quantizers import DeviceLevels, Quantized
from .structures import Layer, packed_crossbars

__all__ = ["ArrayCost", "array_cost", "mismatch_study"]

Floats = npt.NDArray[np.float64]

ADC_JOULES = 1.6e-12  # one conversion of one output of a crossbar
DAC_JOULES = 0.4e-12  # one input of a crossbar driven
READ_VOLTS = 0.2
READ_SECONDS = 1e-7
DISTRIBUTIONS = ("normal", "log-normal")


@dataclass(frozen=True)
class ArrayCost:
    """Of one layer: `crossbars` (two devices per weight take two) and the `energy` (joules) of one inference."""

    crossbars: int
    energy: float


def array_cost(placed: Quantized, layer: Layer, crossbar: tuple[int, int], devices: DeviceLevels) -> ArrayCost:
    """The cost of a layer's levels on crossbars of (filters, columns), empty filters and columns left out.

    Every crossbar converts its outputs, drives its inputs and reads sum G * V^2 * t, once per output position.
    """
    levels = layer.matrix(placed.levels)
    count = packed_crossbars(levels != 0, *crossbar)
    filters, columns = (int((levels != 0).any(axis=axis).sum()) for axis in (1, 0))
    down, across = -(-filters // crossbar[0]), -(-columns // crossbar[1])
    used = levels[(levels != 0).any(axis=1)][:, (levels != 0).any(axis=0)]
    siemens = sum(float(g.sum()) for g in devices.devices(Quantized(used, placed.scale, codebook=placed.codebook)))
    converters = filters * across * ADC_JOULES + columns * down * DAC_JOULES
    energy = layer.positions * (converters + siemens * READ_VOLTS**2 * READ_SECONDS)
    return ArrayCost(count * (2 if devices.mode == "pair" else 1), energy)


def mismatch_study(
    model: CompressedModel,
    devices: DeviceLevels,
    x: Floats,
    y: npt.NDArray[np.int64],
    sigmas: Sequence[float] = (0.0, 0.05, 0.1, 0.15, 0.2),
    *,
    draws: int = 20,
    seed: int = 0,
    distribution: str = "normal",
) -> dict[float, Floats]:
    """sigma -> the accuracies (draws,) with every conductance G replaced by G * (1 + delta), drawn anew each time.

    delta ~ N(0, sigma^2), with no conductance below zero, or "log-normal": G * exp(N(0, sigma^2)). `x` (n, *shape) are
    normalized inputs, `y` (n,) labels. Draws are the same for every sigma but for their size. All weight arrays are on
    `devices`: in mode "pair" integers with a step, otherwise real values on one scale. Biases are no devices.

    Raises ModelError where a weight array of a pair model has no step, or settings are out of range.
    """
    if distribution not in DISTRIBUTIONS or draws < 1 or min(sigmas, default=0.0) < 0:
        raise ModelError(
            f"cannot study mismatch: got {distribution!r}, {draws} draws, sigmas {list(sigmas)}; need one of "
            f"{DISTRIBUTIONS}, at least one draw and sigmas >= 0"
        )
    keys = list(weight_keys(model))
    missing = sorted(set(keys) - set(model.quantization)) if devices.mode == "pair" else []
    if missing:
        raise ModelError(
            f"cannot study mismatch: arrays {missing} have no step; need a model of CrossbarAdmm in pair mode"
        )
    steps = {key: step for key, step in model.quantization.items() if key not in keys}
    found = {}
    for sigma in sigmas:
        rng = np.random.default_rng(seed)
        hits = []
        for _ in range(draws):
            noisy = {key: _disturbed(model, key, devices, sigma, rng, distribution) for key in keys}
            disturbed = model.with_(arrays={**model.arrays, **noisy}, quantization=steps)
            hits.append(float((forward(disturbed, x).argmax(axis=1) == y).mean()))
        found[float(sigma)] = np.array(hits)
    return found


def _disturbed(
    model: CompressedModel,
    key: str,
    devices: DeviceLevels,
    sigma: float,
    rng: np.random.Generator,
    distribution: str,
) -> Floats:
    """The real weights that devices off by delta make."""
    values = np.asarray(model.arrays[key], dtype=np.float64)
    factors = [_factors(rng, values.shape, sigma, distribution) for _ in range(2 if devices.mode == "pair" else 1)]
    if devices.mode == "single":
        return values * factors[0]
    matrix = values.reshape(len(values), -1)
    placed = np.outer((matrix != 0).any(axis=1), (matrix != 0).any(axis=0)).reshape(values.shape)
    positive, negative = devices.devices(Quantized(values.astype(np.int64), 1.0))
    scale = model.quantization[key] * (2**devices.bits - 1) / (devices.high - devices.low)
    return np.asarray(scale * (positive * factors[0] - negative * factors[1]) * placed, dtype=np.float64)


def _factors(rng: np.random.Generator, shape: tuple[int, ...], sigma: float, distribution: str) -> Floats:
    delta = sigma * rng.standard_normal(shape)
    return np.exp(delta) if distribution == "log-normal" else np.maximum(1 + delta, 0.0)
