"""Calibrated ranges are never narrower than what was seen, whatever side of zero it lies on."""

from __future__ import annotations

import numpy as np
import pytest

from he_runtime.model import CompressedModel, InputSpec, Node, OutputSpec
from he_runtime.reference import calibrate


def shifted(shift: float) -> CompressedModel:
    node = Node("y", "affine", ("x",), (3,), {}, {"scale": "s", "shift": "t"})
    arrays = {"s": np.ones(3), "t": np.full(3, shift)}
    return CompressedModel("m", InputSpec("x", (3,)), OutputSpec("y"), (node,), arrays)


X = np.random.default_rng(0).uniform(-1, 1, size=(50, 3))


@pytest.mark.parametrize("shift", [-5.0, -1.5, 0.0, 1.5, 5.0])
@pytest.mark.parametrize("margin", [1.0, 1.1, 2.0])
def test_both_ends_move_outwards(shift: float, margin: float) -> None:
    low, high = calibrate(shifted(shift), X, margin).ranges["y"]
    least, largest = X.min() + shift, X.max() + shift
    if margin == 1.0:
        assert (low, high) == (least, largest)
    else:
        assert low < least and largest < high
    # The larger magnitude, which scales follow, is `margin` times the largest that was seen.
    assert max(abs(low), abs(high)) == pytest.approx(margin * max(abs(least), abs(largest)))


def test_ranges_on_both_sides_of_zero_are_multiplied() -> None:
    assert calibrate(shifted(0.0), X, 1.25).ranges["y"] == (1.25 * X.min(), 1.25 * X.max())
