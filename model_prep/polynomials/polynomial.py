"""Activations -> learned quadratics.

Each activation becomes a*x^2 + b*x + c per channel, started from the least-squares fit under the normal distribution
of its own input (for ReLU under N(0, s^2): c = s/sqrt(8 pi), b = 1/2, a = 1/(s sqrt(8 pi))), mixed in slowly,
and trained by knowledge distillation from the network that still has its activations.

Coefficients obey a >= MIN_CURVATURE and |b/2a| <= MAX_CENTER in units of the input's standard deviation: then the
completed square (folding.py) loses no precision to cancellation, and its sign is always positive, which is what lets a
residual sum share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from he_runtime.model import Node

from ..graph import Graph
from ..trainable import Site, TrainableGraph, on_interval
from .activations import evaluate

__all__ = [
    "MAX_CENTER",
    "MIN_CURVATURE",
    "MIN_STD",
    "RANGE_MARGIN",
    "constrain",
    "fit_quadratic",
    "quadratic_site",
    "range_penalty",
    "replace_activations",
]

Floats = npt.NDArray[np.float64]

MIN_CURVATURE = 0.05
MAX_CENTER = 4.0
_QUADRATURE_POINTS = 96
MIN_STD = 1e-3
RANGE_MARGIN = 1.1  # as AutoFHE's running bound


def fit_quadratic(function: Mapping[str, object], mean: Floats, std: Floats) -> tuple[Floats, Floats, Floats]:
    """Least-squares a, b, c (channels,) of an activation under N(mean, std^2) per channel, within the constraints."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_QUADRATURE_POINTS)
    weights = weights / weights.sum()
    x = mean[:, None] + std[:, None] * nodes  # (channels, points)
    target = evaluate(function, x)
    # In z = (x - mean) / std the Hermite polynomials 1, z, z^2 - 1 are orthogonal, so each coefficient stands alone.
    h0 = (target * weights).sum(1)
    h1 = (target * nodes * weights).sum(1)
    h2 = (target * (nodes**2 - 1) * weights).sum(1) / 2
    curvature, slope = _feasible(h1, h2, mean / std, MIN_CURVATURE * std)
    a = curvature / std**2
    b = slope / std - 2 * a * mean
    c = h0 - (a * (mean**2 + std**2) + b * mean)  # the mean of the output is exact
    return a, b, c


def _feasible(slope: Floats, curvature: Floats, mean: Floats, least: Floats) -> tuple[Floats, Floats]:
    """The (curvature, slope) nearest in mean square to the given coefficients of z^2 - 1 and z, within the constraints.

    With `mean` in standard deviations, |b/2a| <= MAX_CENTER reads |slope / (2 curvature) - mean| <= MAX_CENTER: a cone.
    Outside of it the nearest point lies on one of its rays, whose norm is E[(z^2 - 1)^2] = 2 in the curvature.
    """
    bent = np.maximum(curvature, least)
    ratio = np.clip(slope / bent, 2 * (mean - MAX_CENTER), 2 * (mean + MAX_CENTER))
    inside = ratio == slope / bent
    on_ray = np.maximum((ratio * slope + 2 * curvature) / (ratio**2 + 2), least)
    return np.where(inside, bent, on_ray), np.where(inside, slope, ratio * on_ray)


@torch.no_grad()
def replace_activations(graph: Graph, x: npt.NDArray[np.float32]) -> tuple[Graph, dict[str, Site]]:
    """Replace every activation by a fitted quadratic; `x` (B, *shape) holds normalized inputs to measure on.

    Sites are fitted in order, each on what the *original* network feeds it.
    """
    net = TrainableGraph(graph)
    net(torch.as_tensor(x, dtype=torch.float32))
    sites: dict[str, Site] = {}
    for node in graph.activations():
        graph, sites[node.name] = quadratic_site(graph, node, net.pre_activations[node.name].double().numpy())
    return graph, sites


def quadratic_site(graph: Graph, node: Node, seen: Floats) -> tuple[Graph, Site]:
    """One activation replaced by the quadratic fitted on what it saw, (B, *shape)."""
    channels = np.moveaxis(seen, 1, 0).reshape(seen.shape[1], -1)
    mean, std = channels.mean(1), np.maximum(channels.std(1), MIN_STD)
    if seen.ndim == 2:
        # One channel per feature would learn a polynomial per neuron; a shared one generalises and folds as well.
        mean, std = np.full_like(mean, seen.mean()), np.full_like(std, max(float(seen.std()), MIN_STD))
    coefficients = dict(zip("abc", fit_quadratic(node.attrs, mean, std), strict=True))
    quadratic = replace(node, op="quadratic", attrs={}, arrays={})
    site = Site(dict(node.attrs), std, RANGE_MARGIN * float(np.abs(seen).max()))
    return graph.with_node(quadratic).with_arrays(quadratic, coefficients), site


@torch.no_grad()
def constrain(net: TrainableGraph) -> None:
    """Put every quadratic site's coefficients back within the constraints; call after each optimiser step."""
    for name in net.sites:
        if net.graph.node(name).op != "quadratic":
            continue
        arrays = net.graph.node(name).arrays
        a, b = net.parameter(arrays["a"]), net.parameter(arrays["b"])
        a.clamp_(min=MIN_CURVATURE)
        b.copy_(torch.maximum(torch.minimum(b, 2 * MAX_CENTER * a), -2 * MAX_CENTER * a))


def range_penalty(net: TrainableGraph, exponent: int) -> torch.Tensor:
    """The sum over sites of mean(|u|^exponent) in the last forward pass (after PILLAR).

    u is the input over the site's radius, or mapped from a polynomial's interval onto [-1, 1]; lines have no range.
    """
    terms = [
        (_in_units_of_range(net, name, x) ** exponent).mean()
        for name, x in net.pre_activations.items()
        if name in net.sites and net.graph.node(name).op != "affine"
    ]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _in_units_of_range(net: TrainableGraph, name: str, x: torch.Tensor) -> torch.Tensor:
    node = net.graph.node(name)
    return on_interval(node, x) if node.op == "polynomial" else x / net.sites[name].radius
