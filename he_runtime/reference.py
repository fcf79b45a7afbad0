"""The model graph in float64 NumPy: what a compressed model means, before any packing.

`run_clear` evaluates a *plan* on slots; this evaluates the *graph*. The two agree to rounding, which is how lowerings
are tested. Calibration (ranges and mean squares per node) runs on it too, so no torch is needed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from . import chebyshev
from .errors import InputError, Reason
from .model import CompressedModel, InputSpec, Node

__all__ = ["calibrate", "evaluate_node", "forward", "forward_all", "normalize"]

Batch = npt.NDArray[np.float64]
SAMPLES = "stats.samples"
_KEPT_SAMPLES = 64  # errors have tails: with 32 sigma scatters by a tenth


def normalize(spec: InputSpec, x: npt.ArrayLike) -> Batch:
    """Raw inputs (B, *shape) -> (x - mean) / std per channel; InputError on a wrong shape or a NaN."""
    values = np.asarray(x, dtype=np.float64)
    if values.shape[1:] != tuple(spec.shape):
        raise InputError(
            f"cannot use input {spec.name!r}: got shape {values.shape[1:]} per sample, need {tuple(spec.shape)}; "
            "try reshaping to (batch, *shape)"
        )
    if not np.isfinite(values).all():
        raise InputError(
            f"cannot use input {spec.name!r}: got NaN or infinite values, need finite ones; try leaving such samples out",
            Reason.INPUT_NOT_FINITE,
        )
    channel_axes = (-1,) + (1,) * (len(spec.shape) - 1)
    normalized: Batch = (values - np.reshape(spec.mean, channel_axes)) / np.reshape(spec.std, channel_axes)
    return normalized


def forward(model: CompressedModel, x: Batch) -> Batch:
    """Output of the graph for *normalized* inputs (B, *shape): (B, *output shape)."""
    return forward_all(model, x)[model.output.node]


def forward_all(model: CompressedModel, x: Batch) -> dict[str, Batch]:
    """Every node's output by name, the input included."""
    values = {model.input.name: np.asarray(x, dtype=np.float64)}
    for node in model.nodes:
        values[node.name] = evaluate_node(model, node, *(values[i] for i in node.inputs))
    return values


def evaluate_node(model: CompressedModel, node: Node, *inputs: Batch) -> Batch:
    """One node's output for outputs (B, *shape) of the nodes that it reads."""
    return _EVALUATE[node.op](model, node, *inputs)


def calibrate(model: CompressedModel, x: Batch, margin: float = 1.1) -> CompressedModel:
    """Add ranges (each end moved outwards by the factor `margin`) and per-element mean squares measured on normalized inputs `x` (B, *shape).

    The first inputs are kept in the artifact as "stats.samples": the error prediction follows them through the
    network, because errors grow with the values they ride on. They stay with the operator; no plan contains them.
    """
    values = forward_all(model, x)
    ranges = {name: _widened(float(v.min()), float(v.max()), margin) for name, v in values.items()}
    stats = {f"stats.{name}": np.mean(v**2, axis=0).astype(np.float32) for name, v in values.items()}
    stats[SAMPLES] = np.asarray(x[:_KEPT_SAMPLES], dtype=np.float32)
    arrays = {k: v for k, v in model.arrays.items() if not k.startswith("stats.")}
    logits = values[model.output.node].reshape(len(x), -1)
    metadata = dict(model.metadata)
    if logits.shape[1] > 1:
        top = np.sort(logits, axis=1)
        metadata["median_margin"] = float(np.median(top[:, -1] - top[:, -2]))
    return model.with_(arrays={**arrays, **stats}, ranges=ranges, metadata=metadata)


def _widened(low: float, high: float, margin: float) -> tuple[float, float]:
    """Both ends moved outwards: a positive least value divides where a negative one multiplies."""
    return min(low * margin, low / margin), max(high * margin, high / margin)


def _per_channel(values: npt.NDArray[np.float64] | None, x: Batch) -> npt.NDArray[np.float64]:
    assert values is not None
    return values if values.ndim == 0 else values.reshape((-1,) + (1,) * (x.ndim - 2))


def _dense(model: CompressedModel, node: Node, x: Batch) -> Batch:
    weight, bias = model.array(node, "weight"), model.array(node, "bias")
    assert weight is not None
    y: Batch = x @ weight.T
    return y if bias is None else y + bias


def _windows(
    x: Batch, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> Batch:
    """(B, C, H, W) -> (B, C, Ho, Wo, kh, kw), zero-padded."""
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    span = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(x, span, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def _conv2d(model: CompressedModel, node: Node, x: Batch) -> Batch:
    weight, bias = model.array(node, "weight"), model.array(node, "bias")
    assert weight is not None
    a = node.attrs
    windows = _windows(x, weight.shape[2:], a["stride"], a["padding"], a["dilation"])
    groups = int(a["groups"])
    outputs = [
        np.einsum("bchwij,ocij->bohw", part, kernel, optimize=True)
        for part, kernel in zip(np.split(windows, groups, axis=1), np.split(weight, groups), strict=True)
    ]
    y: Batch = np.concatenate(outputs, axis=1)
    return y if bias is None else y + bias[:, None, None]


def _avg_pool2d(_: CompressedModel, node: Node, x: Batch) -> Batch:
    a = node.attrs
    y: Batch = _windows(x, a["kernel"], a["stride"], a["padding"], (1, 1)).mean(axis=(-2, -1))
    return y


def _reshape(_: CompressedModel, node: Node, x: Batch) -> Batch:
    return x.reshape((len(x), *node.shape))


def _affine(model: CompressedModel, node: Node, x: Batch) -> Batch:
    return _per_channel(model.array(node, "scale"), x) * x + _per_channel(model.array(node, "shift"), x)


def _quadratic(model: CompressedModel, node: Node, x: Batch) -> Batch:
    a, b, c = (_per_channel(model.array(node, role), x) for role in "abc")
    return a * x**2 + b * x + c


def _polynomial(model: CompressedModel, node: Node, x: Batch) -> Batch:
    coefficients = model.array(node, "coefficients")
    assert coefficients is not None
    return chebyshev.evaluate(node, coefficients, x)


def _add(_: CompressedModel, __: Node, x: Batch, y: Batch) -> Batch:
    return x + y


def _multiply(_: CompressedModel, __: Node, x: Batch, y: Batch) -> Batch:
    return x * y


def _matmul(_: CompressedModel, node: Node, x: Batch, y: Batch) -> Batch:
    x = x.swapaxes(-1, -2) if node.attrs.get("transpose_left") else x
    y = y.swapaxes(-1, -2) if node.attrs.get("transpose_right") else y
    return np.asarray(x @ y)


def _concat(_: CompressedModel, __: Node, *xs: Batch) -> Batch:
    return np.concatenate(xs, axis=1)


_EVALUATE: dict[str, Callable[..., Batch]] = {
    "dense": _dense,
    "conv2d": _conv2d,
    "avg_pool2d": _avg_pool2d,
    "reshape": _reshape,
    "affine": _affine,
    "quadratic": _quadratic,
    "polynomial": _polynomial,
    "add": _add,
    "multiply": _multiply,
    "concat": _concat,
    "matmul": _matmul,
}
