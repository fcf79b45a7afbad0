"""The stand-in of a model: its layers, dimensions and input, with weights, ranges and statistics that anyone could make.

What counts as shape, and is kept: the graph, the dimensions, groups, strides and padding of every layer, whether it has a
bias, whether an activation is a plain square or a general quadratic, which Chebyshev terms a polynomial has, and the
input's normalization and range. Weights, coefficients and intervals are drawn from a fixed seed, and every linear layer
is scaled to outputs of mean square one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..chebyshev import chebyshev_coefficients
from ..model import CompressedModel, Node
from ..reference import calibrate, evaluate_node, normalize

__all__ = ["PUBLIC_MAGNITUDE", "stand_in"]

Floats = npt.NDArray[np.float64]
PUBLIC_MAGNITUDE = 256.0  # that every tensor may reach unless the operator says otherwise: most networks stay below
_SAMPLES = 64
_INTERVAL = 8.0  # of polynomials: outputs of mean square one stay well inside
_SCALED = ("dense", "conv2d")


def stand_in(model: CompressedModel, magnitude: float = PUBLIC_MAGNITUDE) -> CompressedModel:
    """A dense network of the shape of `model`, whose tensors may reach `magnitude` in absolute value.

    Equal for all models of one shape, except for names, labels and metadata.
    """
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    nodes = tuple(_node(model, node, rng, arrays) for node in model.nodes)
    source = model.input
    lowest, highest = source.low, max(source.high, source.low + 1e-6)
    x = normalize(source, rng.uniform(lowest, highest, size=(_SAMPLES, *source.shape)))
    drawn = CompressedModel(model.name, source, model.output, nodes, arrays)
    _scale(drawn, arrays, x)
    found = calibrate(drawn, x)
    ranges = dict.fromkeys(found.ranges, (-magnitude, magnitude)) | {source.name: found.ranges[source.name]}
    return found.with_(ranges=ranges)


def _node(model: CompressedModel, node: Node, rng: np.random.Generator, arrays: dict[str, Any]) -> Node:
    """The node with arrays of its own, put into `arrays`."""
    roles: dict[str, Floats] = {}
    attrs = dict(node.attrs)
    if node.op == "polynomial":
        roles, attrs = _polynomial(model, node, rng)
    elif node.op == "quadratic":
        roles = _quadratic(model, node, rng)
    else:
        for role in node.arrays:
            given = model.array(node, role)
            assert given is not None
            center = 1.0 if role == "scale" else 0.0
            roles[role] = center + rng.normal(size=given.shape) * (1.0 if role == "weight" else 0.1)
    for role, values in roles.items():
        arrays[f"{node.name}.{role}"] = values
    return Node(node.name, node.op, node.inputs, node.shape, attrs, {role: f"{node.name}.{role}" for role in roles})


def _quadratic(model: CompressedModel, node: Node, rng: np.random.Generator) -> dict[str, Floats]:
    """Coefficients of the same kind: a plain square stays one, and a constant that is zero everywhere stays away."""
    a, b, c = (model.array(node, role) for role in "abc")
    assert a is not None and b is not None and c is not None
    if (a == 1).all() and (b == 0).all():
        return {"a": a, "b": b, "c": rng.normal(size=c.shape) * 0.1 if c.any() else c}
    return {
        "a": rng.uniform(0.1, 0.4, size=a.shape),
        "b": rng.uniform(0.5, 1.0, size=b.shape),
        "c": rng.normal(size=c.shape) * 0.1,
    }


def _polynomial(
    model: CompressedModel, node: Node, rng: np.random.Generator
) -> tuple[dict[str, Floats], dict[str, Any]]:
    """As many Chebyshev terms, the same ones zero in all channels, on an interval of the same kind (one, or per channel)."""
    given = model.array(node, "coefficients")
    assert given is not None
    real = chebyshev_coefficients(node, given)
    present = np.asarray(real.any(axis=1))
    drawn = rng.normal(size=real.shape) * 0.25 * present[:, None]
    rows = np.ascontiguousarray(drawn.T)
    ends = {}
    for key, sign in (("low", -1.0), ("high", 1.0)):
        width = rng.uniform(0.9, 1.1, size=np.shape(node.attrs[key])) * _INTERVAL
        ends[key] = (sign * width).tolist()
    return {"coefficients": rows if len(rows) > 1 else rows[0]}, {**node.attrs, "basis": "chebyshev", **ends}


def _scale(model: CompressedModel, arrays: dict[str, Any], x: Floats) -> None:
    """Divide the arrays of every dense and convolutional layer by the root mean square of its output on `x`, in order."""
    values = {model.input.name: x}
    for node in model.nodes:
        inputs = [values[name] for name in node.inputs]
        made = evaluate_node(model, node, *inputs)
        if node.op in _SCALED:
            size = math.sqrt(float(np.mean(made**2))) or 1.0
            for role in node.arrays.values():
                arrays[role] = arrays[role] / size
            made = made / size
        values[node.name] = made
