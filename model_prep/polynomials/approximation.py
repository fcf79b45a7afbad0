"""Activations -> polynomials of any degree, all at once or one after the other.

Degree 0 is no activation at all: a line, which folding absorbs, or nothing. Degree 2 is the learned quadratic of
polynomial.py. Any other degree is a least-squares fit in the Chebyshev basis of the interval that the site's inputs
span, widened by RANGE_MARGIN; the runtime evaluates it (he_runtime/chebyshev.py). Images get a polynomial per channel,
vectors one for all features. Low degrees have an interval per channel too, which fits better; high ones grow so fast
beyond it that one unseen value spoils the network, so they have the interval of all channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from numpy.polynomial import chebyshev

from he_runtime.chebyshev import MAX_DEGREE
from he_runtime.errors import ModelError
from he_runtime.model import Node

from ..graph import Graph
from ..trainable import Site, TrainableGraph
from .activations import evaluate
from .polynomial import MIN_STD, RANGE_MARGIN, quadratic_site

__all__ = ["Train", "by_channel", "fit_chebyshev", "fit_line", "replace_progressively", "replace_sites"]

Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Train = Callable[[TrainableGraph, str], None]  # trains the network in place after the site of that name was replaced

_GRID = 512  # many more points than coefficients
# On the digits CNN, fitted on one half of the images and measured on the other, an interval for all channels loses 1.3 to
# 2.7 times as much at degrees 3 to 7, but a thousandth at 15 (KL 0.00005 against 0.7).
_MOST_PER_CHANNEL = 8
_SPREAD = 0.05  # part of the weight that lies on the whole interval and not where samples are


def fit_chebyshev(
    function: Mapping[str, object], samples: Floats, low: Floats, high: Floats, degree: int, spread: float = _SPREAD
) -> Floats:
    """Least-squares coefficients (channels, degree + 1) of an activation in the Chebyshev basis of [low, high].

    `samples` (channels, n) weigh the points by their distribution; a part `spread` of the weight has the Chebyshev
    density, without which the polynomial is free wherever no sample lies (1: plain Chebyshev least squares).
    """
    angles = (np.arange(_GRID) + 0.5) * np.pi / _GRID
    basis = chebyshev.chebvander(np.cos(angles), degree)  # (grid, degree + 1)
    center, half = (low + high)[:, None] / 2, (high - low)[:, None] / 2
    target = evaluate(function, center + half * np.cos(angles))
    cells = np.arccos(np.clip((samples - center) / half, -1.0, 1.0)) * (_GRID / np.pi)
    weights = np.stack([np.bincount(np.minimum(row.astype(np.int64), _GRID - 1), minlength=_GRID) for row in cells])
    weights = (1 - spread) * weights / samples.shape[1] + spread / _GRID
    gram = np.einsum("gi,cg,gj->cij", basis, weights, basis, optimize=True)
    moments = np.einsum("gi,cg->ci", basis, weights * target, optimize=True)
    return np.asarray(np.linalg.solve(gram, moments[:, :, None])[:, :, 0])


def fit_line(samples: Floats, values: Floats) -> tuple[Floats, Floats]:
    """The slope and shift (channels,) nearest in mean square to the `values` (channels, n) of something on `samples`."""
    center, mean = samples.mean(1, keepdims=True), values.mean(1, keepdims=True)
    variance = np.maximum(((samples - center) ** 2).mean(1), MIN_STD**2)
    slope = ((samples - center) * (values - mean)).mean(1) / variance
    return slope, mean[:, 0] - slope * center[:, 0]


def by_channel(values: Floats) -> Floats:
    """(n, channels, *plane) -> (channels, n * plane)."""
    return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)


@torch.no_grad()
def replace_sites(
    graph: Graph, x: Float32, degrees: Mapping[str, int], *, line: bool = True, spread: float = _SPREAD
) -> tuple[Graph, dict[str, Site]]:
    """Replace the activations that `degrees` names; `x` (B, *shape) holds normalized inputs to measure on.

    Each is fitted on what the network as given feeds it. Degree 0 leaves the best line, or nothing where `line` is
    false. Raises ModelError on a name that is no activation and on a degree that nothing evaluates.
    """
    _check(graph, degrees)
    net = TrainableGraph(graph)
    net(torch.as_tensor(x, dtype=torch.float32))
    sites: dict[str, Site] = {}
    for node in graph.activations():
        if node.name not in degrees:
            continue
        degree, seen = degrees[node.name], net.pre_activations[node.name].double().numpy()
        if degree == 0 and not line:
            graph = graph.without(node.name)
            continue
        graph, sites[node.name] = _replaced(graph, node, seen, degree, spread)
    return graph, sites


def replace_progressively(
    graph: Graph, x: Float32, degrees: Mapping[str, int], train: Train, *, line: bool = True, spread: float = _SPREAD
) -> tuple[Graph, dict[str, Site]]:
    """Replace activations one after the other, in the order of evaluation, training after each (SmartPAF).

    Each is fitted on what the network feeds it by then, so the approximations before it are taken into account.
    `train(net, site)` trains in place, usually a short distillation that constrains after each step and penalizes
    ranges. Activations that `degrees` does not name stay. Errors are those of `replace_sites`.
    """
    _check(graph, degrees)
    sites: dict[str, Site] = {}
    for name in [node.name for node in graph.activations() if node.name in degrees]:
        graph, new = replace_sites(graph, x, {name: degrees[name]}, line=line, spread=spread)
        sites |= new
        net = TrainableGraph(graph, sites)
        train(net, name)
        graph = net.to_graph()
    return graph, sites


def _check(graph: Graph, degrees: Mapping[str, int]) -> None:
    names = [node.name for node in graph.activations()]
    unknown = sorted(set(degrees) - set(names))
    if unknown:
        raise ModelError(f"cannot replace activations {unknown}: need some of {names}")
    wrong = {name: d for name, d in degrees.items() if not 0 <= d <= MAX_DEGREE}
    if wrong:
        raise ModelError(f"cannot replace activations by the degrees {wrong}: need 0 to {MAX_DEGREE}")


def _replaced(graph: Graph, node: Node, seen: Floats, degree: int, spread: float) -> tuple[Graph, Site]:
    if degree == 2:
        return quadratic_site(graph, node, seen)
    shared = seen.ndim == 2
    samples = seen.reshape(1, -1) if shared else by_channel(seen)
    site = Site(dict(node.attrs), np.ones(1), RANGE_MARGIN * float(np.abs(seen).max()))
    if degree < 2:
        slope, shift = fit_line(samples, evaluate(node.attrs, samples))
        made = replace(node, op="affine", attrs={}, arrays={})
        roles = {"scale": slope, "shift": shift}
    else:
        one = shared or degree > _MOST_PER_CHANNEL
        low, high = samples.min(1), samples.max(1)
        low, high = widened(np.full_like(low, low.min()), np.full_like(high, high.max())) if one else widened(low, high)
        attrs = {"basis": "chebyshev", "low": _plain(low, one), "high": _plain(high, one)}
        made = replace(node, op="polynomial", attrs=attrs, arrays={})
        roles = {"coefficients": fit_chebyshev(node.attrs, samples, low, high, degree, spread)}
    arrays = {role: values[0] if shared else values for role, values in roles.items()}
    return graph.with_node(made).with_arrays(made, arrays), site


def widened(low: Floats, high: Floats, margin: float = RANGE_MARGIN) -> tuple[Floats, Floats]:
    """The ends of an interval `margin` times as wide about the same center, and never of no width."""
    center, half = (low + high) / 2, margin * np.maximum((high - low) / 2, MIN_STD)
    return center - half, center + half


def _plain(ends: Floats, one: bool) -> float | list[float]:
    return float(ends[0]) if one else [float(v) for v in ends]
