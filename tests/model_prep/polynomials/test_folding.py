"""Affine maps on either side of a polynomial disappear into it or past it."""

from __future__ import annotations

import numpy as np
import pytest

from he_runtime.model import InputSpec, Node
from he_runtime.reference import forward
from model_prep.folding.folding import fold
from model_prep.graph import Graph


def graph(basis: str, scale: float, per_channel: bool) -> Graph:
    """affine - polynomial - affine - dense on the input itself, so that neither map has a linear layer before it."""
    rng = np.random.default_rng(0)
    rows = (5,) if per_channel else ()
    ends = {"low": [-3.0, -2, -1, -4, -5], "high": [1.0, 2, 3, 4, 5]} if per_channel else {"low": -3.0, "high": 4.0}
    nodes = (
        Node("before", "affine", ("x",), (5,), {}, {"scale": "s", "shift": "t"}),
        Node("p", "polynomial", ("before",), (5,), {"basis": basis, **ends}, {"coefficients": "c"}),
        Node("after", "affine", ("p",), (5,), {}, {"scale": "u", "shift": "v"}),
        Node("fc", "dense", ("after",), (3,), {}, {"weight": "w"}),
    )
    arrays = {
        "s": scale * rng.uniform(0.5, 1.5, size=5),
        "t": rng.normal(size=5),
        "c": rng.normal(size=(*rows, 6)),
        "u": rng.normal(size=5),
        "v": rng.normal(size=5),
        "w": rng.normal(size=(3, 5)),
    }
    return Graph("x", (5,), "fc", nodes, arrays)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("scale", [1.0, -1.0])
@pytest.mark.parametrize("basis", ["chebyshev", "power"])
def test_folding_around_a_polynomial_is_exact(basis: str, scale: float, per_channel: bool) -> None:
    before = graph(basis, scale, per_channel)
    after = fold(before)
    # In powers the map before it would have to be multiplied out, which loses digits: it stays, and the planner merges it.
    assert [n.op for n in after.nodes] == (["affine"] if basis == "power" else []) + ["polynomial", "dense"]
    x = np.random.default_rng(1).normal(size=(20, 5))
    values = (forward(g.to_model("m", InputSpec("", (5,))), x) for g in (before, after))
    expected, got = values
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
