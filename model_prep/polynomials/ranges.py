"""The interval of every polynomial in an artifact, and how many values leave it.

A polynomial is good on the interval that it was fitted and trained on and grows without bound beyond it, so the artifact
says what that interval is, measured once and widened (static: under encryption nobody sees a value). Whether data stays
inside can be counted only in the clear, by whoever has inputs: the researcher on a test set, a client on its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from he_runtime.chebyshev import evaluate, interval
from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel, Node
from he_runtime.reference import forward_all

from .approximation import widened
from .polynomial import RANGE_MARGIN

__all__ = ["Outside", "count_outside", "monitor", "record_ranges", "settle_ranges"]

Floats = npt.NDArray[np.float64]
_KEY = "sites"
_BATCH = 256


@dataclass(frozen=True)
class Outside:
    """How many of a site's `values` lay outside its interval, and the furthest one: 1 is the end of the interval."""

    count: int
    values: int
    furthest: float

    @property
    def share(self) -> float:
        return self.count / self.values


def settle_ranges(model: CompressedModel, x: npt.ArrayLike, margin: float = RANGE_MARGIN) -> CompressedModel:
    """The same polynomials on the intervals that normalized inputs `x` (B, *shape) span now, `margin` times as wide.

    Training moves what a site sees; the plan's scales and the error prediction follow the interval. No value changes
    beyond rounding. An interval for all channels stays one; polynomials in the power basis keep theirs.
    """
    seen = _spans(model, np.asarray(x, dtype=np.float64))
    for node in _sites(model):
        if node.op != "polynomial" or node.attrs["basis"] != "chebyshev":
            continue
        low, high = (np.atleast_1d(v) for v in widened(*seen[node.name], margin))
        coefficients = model.array(node, "coefficients")
        assert coefficients is not None
        moved = _on_interval(node, np.atleast_2d(coefficients), low, high)
        attrs = {**node.attrs, "low": _plain(low), "high": _plain(high)}
        key = f"{node.name}.settled"
        settled = replace(node, attrs=attrs, arrays={"coefficients": key})
        nodes = tuple(settled if n.name == node.name else n for n in model.nodes)
        model = _without_unused(model.with_(nodes=nodes, arrays={**model.arrays, key: moved}))
    return model


def record_ranges(model: CompressedModel, x: npt.ArrayLike, margin: float = RANGE_MARGIN) -> CompressedModel:
    """Write each site's op, degree and interval into metadata["sites"].

    A polynomial's interval is its own; a quadratic's is the span of its inputs over normalized `x` (B, *shape), per
    channel of an image, `margin` times as wide about its center.
    """
    seen = _spans(model, np.asarray(x, dtype=np.float64))
    sites: dict[str, Any] = {}
    for node in _sites(model):
        coefficients = model.array(node, "coefficients")
        degree = 2 if coefficients is None else coefficients.shape[-1] - 1
        low, high = interval(node) if node.op == "polynomial" else widened(*seen[node.name], margin)
        sites[node.name] = {"op": node.op, "degree": degree, "low": _plain(low), "high": _plain(high)}
    return model.with_(metadata={**model.metadata, _KEY: sites})


def count_outside(model: CompressedModel, x: npt.ArrayLike) -> dict[str, Outside]:
    """Site -> how many of its inputs leave the recorded interval on normalized `x` (B, *shape), in the clear.

    Raises ModelError on a model whose ranges were not recorded.
    """
    recorded = model.metadata.get(_KEY)
    if not isinstance(recorded, dict):
        raise ModelError("cannot count values out of range: the model records no sites; try ranges.record_ranges")
    found: dict[str, Outside] = {}
    for values in _batches(model, np.asarray(x, dtype=np.float64)):
        for node in _sites(model):
            record = recorded.get(node.name)
            if record is None:
                raise ModelError(f"cannot count values out of range: no interval of {node.name!r} is recorded")
            low, high = (_columns(np.asarray(record[key]), values[node.inputs[0]]) for key in ("low", "high"))
            u = np.abs(2 * values[node.inputs[0]] - low - high) / (high - low)
            one = Outside(int((u > 1).sum()), u.size, float(u.max()))
            found[node.name] = _sum(found[node.name], one) if node.name in found else one
    return found


def monitor(
    model: CompressedModel, calibration: npt.ArrayLike, test: npt.ArrayLike, margin: float = RANGE_MARGIN
) -> CompressedModel:
    """`record_ranges` on `calibration`, and beside each interval what leaves it on `test`; both normalized."""
    recorded = record_ranges(model, calibration, margin)
    outside = count_outside(recorded, test)
    sites = {
        name: {**record, "outside": {**asdict(outside[name]), "share": outside[name].share}}
        for name, record in recorded.metadata[_KEY].items()
    }
    return recorded.with_(metadata={**recorded.metadata, _KEY: sites})


def _sites(model: CompressedModel) -> list[Node]:
    return [n for n in model.nodes if n.op in ("quadratic", "polynomial")]


def _batches(model: CompressedModel, x: Floats) -> Iterator[dict[str, Floats]]:
    if not len(x):
        raise ModelError("cannot measure ranges: got no inputs, need at least one")
    for start in range(0, len(x), _BATCH):
        yield forward_all(model, x[start : start + _BATCH])


def _spans(model: CompressedModel, x: Floats) -> dict[str, tuple[Floats, Floats]]:
    """Site -> least and largest input: (), but (channels,) for quadratics on images and where intervals differ."""
    found: dict[str, tuple[Floats, Floats]] = {}
    for values in _batches(model, x):
        for node in _sites(model):
            seen = values[node.inputs[0]]
            shared = seen.ndim == 2 if node.op == "quadratic" else interval(node)[0].ndim == 0
            axes = tuple(range(seen.ndim)) if shared else (0, *range(2, seen.ndim))
            low, high = np.asarray(seen.min(axes)), np.asarray(seen.max(axes))
            if node.name in found:
                low, high = np.minimum(low, found[node.name][0]), np.maximum(high, found[node.name][1])
            found[node.name] = low, high
    return found


def _on_interval(node: Node, rows: Floats, low: Floats, high: Floats) -> Floats:
    """Chebyshev coefficients (channels or 1, degree + 1) of the node's polynomials on another interval."""
    degree = rows.shape[1] - 1
    u = np.cos((np.arange(degree + 1) + 0.5) * np.pi / (degree + 1))
    count = max(len(rows), len(low), *(e.size for e in interval(node)))
    x = np.broadcast_to((low + high)[:, None] / 2 + (high - low)[:, None] / 2 * u, (count, degree + 1))
    values = evaluate(node, rows if len(rows) > 1 else rows[0], x.T[:, :, None] if count > 1 else x.T)
    samples = values.reshape(degree + 1, count)
    moved = np.linalg.solve(chebyshev.chebvander(u, degree), samples).T
    return np.ascontiguousarray(moved if count > 1 else moved[0])


def _sum(left: Outside, right: Outside) -> Outside:
    return Outside(left.count + right.count, left.values + right.values, max(left.furthest, right.furthest))


def _columns(ends: Floats, x: Floats) -> Floats:
    return ends.reshape((-1,) + (1,) * (x.ndim - 2)) if ends.ndim else ends


def _plain(ends: Floats) -> Any:
    return float(ends.reshape(-1)[0]) if ends.size == 1 else ends.tolist()


def _without_unused(model: CompressedModel) -> CompressedModel:
    used = {key for n in model.nodes for key in n.arrays.values()}
    return model.with_(arrays={k: v for k, v in model.arrays.items() if k in used or k.startswith("stats.")})
