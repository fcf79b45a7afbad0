"""Recorded intervals and what leaves them."""

from __future__ import annotations

import numpy as np
import pytest

from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel, InputSpec, Node, OutputSpec
from he_runtime.reference import forward
from model_prep.polynomials.ranges import count_outside, monitor, record_ranges, settle_ranges

RNG = np.random.default_rng(0)


def model(*, per_channel: bool = True, scale: float = 1.0) -> CompressedModel:
    """conv - polynomial of degree 7 per channel - flatten - dense - quadratic - polynomial of degree 3 for all."""
    shape, attrs = (3, 4, 4), {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    ends = {"low": [-4.0, -3.0, -5.0], "high": [3.0, 4.0, 4.5]} if per_channel else {"low": -4.0, "high": 4.0}
    rows = RNG.normal(size=(3, 8) if per_channel else 8) * 0.5 ** np.arange(8)
    nodes = (
        Node("conv", "conv2d", ("x",), shape, attrs, {"weight": "w"}),
        Node("first", "polynomial", ("conv",), shape, {"basis": "chebyshev", **ends}, {"coefficients": "c"}),
        Node("flat", "reshape", ("first",), (48,)),
        Node("fc", "dense", ("flat",), (5,), {}, {"weight": "v"}),
        Node("square", "quadratic", ("fc",), (5,), {}, dict(zip("abc", ("one", "zero", "zero"), strict=True))),
        Node(
            "last",
            "polynomial",
            ("square",),
            (5,),
            {"basis": "chebyshev", "low": 0.0, "high": 9.0},
            {"coefficients": "d"},
        ),
    )
    arrays = {
        "w": scale * RNG.normal(size=(3, 1, 3, 3)) / 3,
        "c": rows,
        "v": RNG.normal(size=(5, 48)) / 7,
        "one": np.array(1.0),
        "zero": np.array(0.0),
        "d": np.array([0.3, 0.5, -0.2, 0.1]),
    }
    return CompressedModel("m", InputSpec("x", (1, 4, 4)), OutputSpec("last"), nodes, arrays)


X = np.random.default_rng(1).normal(size=(300, 1, 4, 4))


@pytest.mark.parametrize("per_channel", [False, True])
def test_settled_intervals_are_the_span_and_change_no_value(per_channel: bool) -> None:
    before = model(per_channel=per_channel)
    after = settle_ranges(before, X, 1.1)
    np.testing.assert_allclose(forward(after, 0.9 * X), forward(before, 0.9 * X), atol=1e-9)
    assert set(after.arrays) == {"w", "v", "one", "zero", "first.settled", "last.settled"}
    seen = np.moveaxis(
        forward(CompressedModel("c", before.input, OutputSpec("conv"), before.nodes[:1], before.arrays), X), 1, 0
    )
    channels = seen.reshape(3 if per_channel else 1, -1)
    half = (channels.max(1) - channels.min(1)) / 2
    node = after.node("first")
    assert np.ndim(node.attrs["low"]) == per_channel
    assert np.allclose((np.array(node.attrs["high"]) - np.array(node.attrs["low"])) / 2, 1.1 * half)
    # As wide as the margin says, nothing that was measured lies outside.
    assert all(o.count == 0 and 0.85 < o.furthest < 1 for n, o in count_outside(record_ranges(after, X), X).items())


def test_what_leaves_an_interval_is_counted_exactly() -> None:
    recorded = record_ranges(model(), X, 1.1)
    assert recorded.metadata["sites"]["square"].keys() == {"op", "degree", "low", "high"}
    assert [s["degree"] for s in recorded.metadata["sites"].values()] == [7, 2, 3]
    far = 2.5 * X
    found = count_outside(recorded, far)
    conv = forward(CompressedModel("c", recorded.input, OutputSpec("conv"), recorded.nodes[:1], recorded.arrays), far)
    low, high = (np.array(recorded.node("first").attrs[k])[:, None, None] for k in ("low", "high"))
    expected = int(((conv < low) | (conv > high)).sum())
    assert found["first"].count == expected > 0 and found["first"].values == conv.size
    assert found["first"].share == expected / conv.size and found["first"].furthest > 1
    assert count_outside(recorded, X)["square"].count == 0 < found["square"].count


def test_the_share_on_the_test_set_goes_into_the_artifact() -> None:
    watched = monitor(model(), X, 2 * X)
    outside = watched.metadata["sites"]["square"]["outside"]
    assert outside["share"] == outside["count"] / outside["values"] and outside["values"] == 300 * 5
    manifest, arrays = watched.to_bytes()
    assert CompressedModel.from_bytes(manifest, arrays).metadata["sites"] == watched.metadata["sites"]


def test_without_recorded_ranges_nothing_is_counted() -> None:
    with pytest.raises(ModelError, match=r"try ranges\.record_ranges"):
        count_outside(model(), X)
    with pytest.raises(ModelError, match="need at least one"):
        record_ranges(model(), X[:0])
