"""What the tests of structures share: layers of many shapes, and the energy that a mask keeps."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from model_prep.structures import Bools, Floats, Layer

__all__ = ["DENSITIES", "SEEDS", "convolutions", "dense_layers", "energies", "kept", "layers"]

SEEDS = st.integers(0, 2**32 - 1)
DENSITIES = st.floats(0.0, 1.0)


@st.composite
def dense_layers(draw: st.DrawFn, least: int = 1, most: int = 20) -> Layer:
    side = st.integers(least, most)
    return Layer("fc.weight", "dense", (draw(side), draw(side)))


@st.composite
def convolutions(draw: st.DrawFn, kernel: int | None = None) -> Layer:
    """Convolutions, some of them grouped; all kernels `kernel` x `kernel` where it is given."""
    groups = draw(st.integers(1, 3))
    size = st.integers(1, 3) if kernel is None else st.just(kernel)
    shape = (groups * draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(size), draw(size))
    return Layer("conv.weight", "conv2d", shape, draw(st.integers(1, 9)), groups)


layers = st.one_of(dense_layers(), convolutions())


def energies(layer: Layer, seed: int) -> Floats:
    """Squared Gaussian weights."""
    return np.square(np.random.default_rng(seed).standard_normal(layer.shape))


def kept(mask: Bools, energy: Floats) -> float:
    return float(energy[mask].sum())
