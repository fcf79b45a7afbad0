"""What capture works with: quadratics of graph nodes, constants, the graph under construction, one captured call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from he_runtime.model import Node

from ..graph import Array

__all__ = ["Builder", "Call", "Constant", "Floats", "Poly", "Unsupported"]

Floats = npt.NDArray[np.float64]


def _zero() -> Floats:
    return np.array(0.0)


def _one() -> Floats:
    return np.array(1.0)


class Unsupported(Exception):
    """What a handler raises: why the operation cannot be expressed, and what to try. Never leaves this package."""

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.why, self.hint = why, hint


@dataclass(frozen=True, eq=False)
class Poly:
    """a*x^2 + b*x + c where x is the output of node `base`; coefficients of shape () or (channels,)."""

    base: str
    shape: tuple[int, ...]
    a: Floats = field(default_factory=_zero)
    b: Floats = field(default_factory=_one)
    c: Floats = field(default_factory=_zero)
    source: str = ""

    @property
    def degree(self) -> int:
        return 2 if self.a.any() else 1

    @property
    def is_plain(self) -> bool:
        return self.degree == 1 and bool((self.b == 1).all()) and not self.c.any()


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that does not depend on the input; `name` is the parameter's, where it is one unchanged."""

    value: torch.Tensor
    name: str | None = None


@dataclass
class Builder:
    """The graph under construction."""

    allow_activations: bool
    nodes: list[Node] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _materialized: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def emit(
        self,
        op: str,
        name: str,
        inputs: tuple[str, ...],
        shape: tuple[int, ...],
        attrs: Mapping[str, Any] | None = None,
        arrays: Mapping[str, Constant | Floats] | None = None,
    ) -> Poly:
        """Append a node and return its output."""
        unique = unique_name(name, {n.name for n in self.nodes} | set(inputs) | set(self.shapes))
        keys = {role: self._store(value, f"{unique}.{role}") for role, value in (arrays or {}).items()}
        self.nodes.append(Node(unique, op, inputs, shape, dict(attrs or {}), keys))
        self.shapes[unique] = shape
        return Poly(unique, shape, source=unique)

    def materialize(self, value: Poly) -> str:
        """The name of a node that holds exactly this value; equal values share one node."""
        if value.is_plain:
            return value.base
        key = (value.base, *(np.broadcast_to(v, (value.shape[0],)).tobytes() for v in (value.a, value.b, value.c)))
        if key not in self._materialized:
            roles = {"a": value.a, "b": value.b, "c": value.c}
            if value.degree == 1:
                roles = {"scale": value.b, "shift": value.c}
            op = "quadratic" if value.degree == 2 else "affine"
            self._materialized[key] = self.emit(op, value.source, (value.base,), value.shape, arrays=roles).base
        return self._materialized[key]

    def _store(self, value: Constant | Floats, fallback: str) -> str:
        if isinstance(value, Constant):
            array: Array = value.value.detach().cpu().numpy().copy()
            key = value.name or fallback
        else:
            array, key = np.asarray(value, dtype=np.float64), fallback
        # "stats." is where calibration keeps its arrays, so a user's module of that name must not land there.
        key = f"module.{key}" if key.startswith("stats.") else key
        if key in self.arrays and not np.array_equal(self.arrays[key], array):
            key = unique_name(key, set(self.arrays))
        self.arrays[key] = array
        return key


@dataclass(frozen=True)
class Call:
    """One captured operation as a handler sees it: arguments by name, the output shape, a name for its node."""

    builder: Builder
    target: str
    name: str
    arguments: Mapping[str, Any]
    shape: tuple[int, ...]

    def __getitem__(self, key: str) -> Any:
        return self.arguments.get(key)

    def poly(self, key: str) -> Poly:
        """An argument that must depend on the input."""
        value = self.arguments.get(key)
        if not isinstance(value, Poly):
            raise Unsupported(f"its argument {key!r} does not depend on the input")
        return value

    def constant(self, key: str) -> Constant | None:
        """An argument that must not depend on the input (or is absent)."""
        value = self.arguments.get(key)
        if isinstance(value, Poly):
            raise Unsupported(
                f"its argument {key!r} depends on the input: this product of two encrypted tensors is not supported",
                "a constant weight, or x * y or x @ y",
            )
        return value if value is None or isinstance(value, Constant) else Constant(torch.as_tensor(value))

    def emit(
        self,
        op: str,
        *inputs: Poly,
        attrs: Mapping[str, Any] | None = None,
        arrays: Mapping[str, Constant | Floats] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Poly:
        names = tuple(self.builder.materialize(value) for value in inputs)
        return self.builder.emit(op, self.name, names, self.shape if shape is None else shape, attrs, arrays)


def unique_name(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        candidate, count = f"{name}_{count}", count + 1
    return candidate
