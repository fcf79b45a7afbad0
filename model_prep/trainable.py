"""A Graph as a torch module: the same nodes, with arrays as parameters.

Everything after capture trains this module and not the user's, so functional activations, reused modules and arbitrary
forwards need no special care: an array that two nodes name is one parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from he_runtime.model import Node

from .graph import ACTIVATION, Graph, weight_keys
from .polynomials.activations import ACTIVATIONS

__all__ = ["Site", "TrainableGraph", "Transform", "on_interval", "straight_through"]

Floats = npt.NDArray[np.float64]
Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Site:
    """A polynomial that stands where an activation was: an affine map, a quadratic or more.

    `function` holds the activation's attributes; `unit` (channels,) is the standard deviation of its input, in whose
    units the coefficients of a quadratic are trained; `radius` bounds the inputs seen while the activation was still there.
    """

    function: Mapping[str, object]
    unit: Floats
    radius: float


class TrainableGraph(nn.Module):
    """Forward pass of a graph on normalized inputs (B, *shape).

    `blend` mixes each site's activation (0) with its polynomial (1). `masks` maps array names to a bool tensor that
    multiplies the weights, `rounding` to what replaces them by values of a grid, `observers` node names to what sees and
    may replace a node's output in training; each passes gradients through. The inputs of activations, quadratics,
    polynomials and sites in the last forward pass are kept in `pre_activations`.

    In training mode a site's polynomial of higher degree sees its input clipped to its interval (PILLAR): beyond it a
    few outliers would throw the network off, and `polynomial.range_penalty` is what brings them back.
    """

    def __init__(self, graph: Graph, sites: Mapping[str, Site] | None = None) -> None:
        super().__init__()
        self.graph, self.sites = graph, dict(sites or {})
        self.blend = 1.0
        self.masks: dict[str, Tensor] = {}
        self.rounding: dict[str, Transform] = {}
        self.observers: dict[str, Transform] = {}
        self.pre_activations: dict[str, Tensor] = {}
        self._index = {key: i for i, key in enumerate(graph.arrays)}
        self._units = {key: u for name, site in self.sites.items() for key, u in _unit_factors(graph, name, site)}
        self._parameters_list = nn.ParameterList(self._parameter(key) for key in graph.arrays)

    def _parameter(self, key: str) -> nn.Parameter:
        nodes = self.graph.users_of_array(key)
        # A square that the user wrote stays a square; only what replaced an activation learns its coefficients.
        trainable = any(n.op not in ("quadratic", "polynomial") or n.name in self.sites for n in nodes)
        values = np.asarray(self.graph.arrays[key], dtype=np.float64) * self._units.get(key, 1.0)
        return nn.Parameter(torch.tensor(values, dtype=torch.float32), requires_grad=trainable)

    def parameter(self, key: str) -> nn.Parameter:
        """The trained values of one array (a site's coefficients in the units of its input)."""
        found: nn.Parameter = self._parameters_list[self._index[key]]
        return found

    def weight_keys(self) -> list[str]:
        """Names of the weight matrices and kernels, in order of first use."""
        return list(weight_keys(self.graph))

    def forward(self, x: Tensor) -> Tensor:
        values = {self.graph.input_name: x}
        self.pre_activations = {}
        for node in self.graph.nodes:
            output = _FORWARD[node.op](self, node, *(values[i] for i in node.inputs))
            observer = self.observers.get(node.name)
            values[node.name] = output if observer is None else observer(output)
        return values[self.graph.output]

    def value(self, node: Node, role: str) -> Tensor | None:
        """An array as the forward pass uses it: masked, on its integer grid, in the units of the graph."""
        key = node.arrays.get(role)
        if key is None:
            return None
        result: Tensor = self.parameter(key)
        if key in self.masks:
            result = result * self.masks[key]
        if key in self.rounding:
            result = self.rounding[key](result)
        if key in self._units:
            result = result / torch.as_tensor(self._units[key], dtype=result.dtype)
        return result

    @torch.no_grad()
    def to_graph(self) -> Graph:
        """The graph with the trained values, masks applied."""
        arrays = {}
        for key in self.graph.arrays:
            values = self.parameter(key).detach().double().numpy().copy() / self._units.get(key, 1.0)
            arrays[key] = values * self.masks[key].numpy() if key in self.masks else values
        return replace(self.graph, arrays=arrays)


def straight_through(values: Tensor, bits: int) -> Tensor:
    """Round to the symmetric grid of `bits` bits in the forward pass, identity in the backward pass."""
    limit = 2 ** (bits - 1) - 1
    step = values.detach().abs().max().clamp(min=torch.finfo(values.dtype).tiny) / limit
    rounded = torch.clamp(torch.round(values.detach() / step), -limit, limit) * step
    # Exactly on the grid: what is added is zero, and only its gradient is not.
    result: Tensor = rounded + (values - values.detach())
    return result


def _unit_factors(graph: Graph, name: str, site: Site) -> list[tuple[str, Floats]]:
    if graph.node(name).op != "quadratic":
        return []
    arrays = graph.node(name).arrays
    return [(arrays["a"], site.unit), (arrays["b"], np.ones_like(site.unit)), (arrays["c"], 1.0 / site.unit)]


def _channels(values: Tensor, x: Tensor) -> Tensor:
    return values if values.ndim == 0 else values.reshape((-1,) + (1,) * (x.ndim - 2))


def _dense(net: TrainableGraph, node: Node, x: Tensor) -> Tensor:
    weight = net.value(node, "weight")
    assert weight is not None
    return F.linear(x, weight, net.value(node, "bias"))


def _conv2d(net: TrainableGraph, node: Node, x: Tensor) -> Tensor:
    weight, a = net.value(node, "weight"), node.attrs
    assert weight is not None
    return F.conv2d(x, weight, net.value(node, "bias"), a["stride"], a["padding"], a["dilation"], a["groups"])


def _avg_pool2d(_: TrainableGraph, node: Node, x: Tensor) -> Tensor:
    return F.avg_pool2d(x, node.attrs["kernel"], node.attrs["stride"], node.attrs["padding"])


def _reshape(_: TrainableGraph, node: Node, x: Tensor) -> Tensor:
    return x.reshape(len(x), *node.shape)


def _affine(net: TrainableGraph, node: Node, x: Tensor) -> Tensor:
    scale, shift = net.value(node, "scale"), net.value(node, "shift")
    assert scale is not None and shift is not None
    if node.name in net.sites:
        net.pre_activations[node.name] = x
    return _blended(net, node, x, _channels(scale, x) * x + _channels(shift, x))


def _quadratic(net: TrainableGraph, node: Node, x: Tensor) -> Tensor:
    net.pre_activations[node.name] = x
    a, b, c = (net.value(node, role) for role in "abc")
    assert a is not None and b is not None and c is not None
    return _blended(net, node, x, (_channels(a, x) * x + _channels(b, x)) * x + _channels(c, x))


def _polynomial(net: TrainableGraph, node: Node, x: Tensor) -> Tensor:
    """Clenshaw's rule on the interval, or Horner's in the power basis."""
    net.pre_activations[node.name] = x
    coefficients = net.value(node, "coefficients")
    assert coefficients is not None
    rows = [_channels(coefficients[..., k], x) for k in range(coefficients.shape[-1])]
    if node.attrs["basis"] == "power":
        y = rows[-1].expand_as(x)
        for row in reversed(rows[:-1]):
            y = y * x + row
        return _blended(net, node, x, y)
    u = on_interval(node, x)
    if net.training and node.name in net.sites:
        u = u.clamp(-1.0, 1.0)
    ahead, after = torch.zeros_like(u), torch.zeros_like(u)
    for row in reversed(rows[1:]):
        ahead, after = 2 * u * ahead - after + row, ahead
    return _blended(net, node, x, u * ahead - after + rows[0])


def on_interval(node: Node, x: Tensor) -> Tensor:
    """x (B, *shape) as u in the interval [-1, 1] of a polynomial node; beyond it where x leaves the interval."""
    low, high = (_channels(torch.as_tensor(node.attrs[k], dtype=x.dtype), x) for k in ("low", "high"))
    return (2 * x - low - high) / (high - low)


def _blended(net: TrainableGraph, node: Node, x: Tensor, y: Tensor) -> Tensor:
    """The polynomial's value y, mixed with the activation's where the node is a site that is still blended in."""
    site = net.sites.get(node.name)
    if site is None or net.blend == 1.0:
        return y
    return _original(site, x) if net.blend == 0.0 else net.blend * y + (1.0 - net.blend) * _original(site, x)


def _original(site: Site, x: Tensor) -> Tensor:
    options = {k: v for k, v in site.function.items() if k != "function"}
    return ACTIVATIONS[str(site.function["function"])](x, **options)


def _activation(net: TrainableGraph, node: Node, x: Tensor) -> Tensor:
    net.pre_activations[node.name] = x
    return _original(Site(node.attrs, np.ones(1), 0.0), x)


def _add(_: TrainableGraph, __: Node, x: Tensor, y: Tensor) -> Tensor:
    return x + y


def _multiply(_: TrainableGraph, __: Node, x: Tensor, y: Tensor) -> Tensor:
    return x * y


def _concat(_: TrainableGraph, __: Node, *xs: Tensor) -> Tensor:
    return torch.cat(xs, 1)


def _matmul(_: TrainableGraph, node: Node, x: Tensor, y: Tensor) -> Tensor:
    x = x.transpose(-1, -2) if node.attrs.get("transpose_left") else x
    y = y.transpose(-1, -2) if node.attrs.get("transpose_right") else y
    return x @ y


_FORWARD: dict[str, Callable[..., Tensor]] = {
    "dense": _dense,
    "conv2d": _conv2d,
    "avg_pool2d": _avg_pool2d,
    "reshape": _reshape,
    "affine": _affine,
    "quadratic": _quadratic,
    "polynomial": _polynomial,
    ACTIVATION: _activation,
    "add": _add,
    "multiply": _multiply,
    "concat": _concat,
    "matmul": _matmul,
}
