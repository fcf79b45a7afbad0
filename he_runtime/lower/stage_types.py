"""What a model is lowered to before packing: stages, each of which costs a packing or a level.

A stage names the tensors it reads and the one it makes; a tensor is known by the name of its stage. Most tensors are
outputs of model nodes. The others are *virtual*: no node computes them (an operand of a matrix product spread out, the
input of a polynomial mapped onto its interval), and `evaluate` says what they hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from numpy.polynomial.chebyshev import chebval

from ..layout import WindowLayout
from .maps import LinearMap
from .polynomial import Structure, structure

__all__ = [
    "AddStage",
    "JoinStage",
    "LinearStage",
    "MultiplyStage",
    "PolynomialStage",
    "QuadraticStage",
    "Stage",
    "Vector",
]

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LinearStage:
    """output = map(inputs, one after the other). `windowed` is the same stage over the client's windows, where possible.

    `nodes` are the model's layers in it, in order, and `owner` is the layer that it serves where it holds none. A `view`
    only selects elements, so whatever reads it may take it in.
    """

    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    map: LinearMap = field(repr=False)
    nodes: tuple[str, ...] = ()
    windowed: tuple[WindowLayout, LinearMap] | None = field(default=None, repr=False)
    view: bool = False
    owner: str = ""

    rescales = 1  # unless the result stays unrescaled (levels.py)

    @property
    def input(self) -> str:
        """The first input; the only one of most stages."""
        return self.inputs[0]

    @property
    def layer(self) -> str:
        """The model's layer that the operations belong to."""
        return self.nodes[-1] if self.nodes else self.owner or self.name

    def evaluate(self, *xs: Vector) -> Vector:
        """Flat samples (B, size) per input -> (B, size)."""
        return np.asarray((self.map.matrix @ np.concatenate(xs, axis=1).T).T + self.map.bias)


@dataclass(frozen=True)
class QuadraticStage:
    """output = a*input^2 + b*input + c per element; a pure square has a = 1 and b = c = 0."""

    name: str
    input: str
    shape: tuple[int, ...]
    a: Vector = field(repr=False)
    b: Vector = field(repr=False)
    c: Vector = field(repr=False)
    rescales: int = 1  # none where small integers leave room for the scale to grow (integers.py)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)

    @property
    def layer(self) -> str:
        return self.name

    @property
    def is_square(self) -> bool:
        """Whether no plaintext product is needed: a is 1 everywhere and b is 0."""
        return bool((self.a == 1).all() and (self.b == 0).all())

    def evaluate(self, x: Vector) -> Vector:
        return self.a * x * x + self.b * x + self.c


@dataclass(frozen=True)
class PolynomialStage:
    """output = sum_k coefficients[k] T_k(v / 2) with v = scale * input + shift: a polynomial of degree 3 or more.

    `coefficients` are (degree + 1, size or 1), `scale` and `shift` (size,) or (1,): the map of the interval onto [-2, 2],
    or none where the linear stage before it has taken it in.
    """

    name: str
    input: str
    shape: tuple[int, ...]
    coefficients: Vector = field(repr=False)
    scale: Vector = field(repr=False)
    shift: Vector = field(repr=False)

    @cached_property
    def structure(self) -> Structure:
        return structure(self.coefficients)

    @property
    def rescales(self) -> int:
        return self.structure.depth

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)

    @property
    def layer(self) -> str:
        return self.name

    @property
    def is_mapped(self) -> bool:
        """Whether the input lies on [-2, 2] already."""
        return bool((self.scale == 1).all() and not self.shift.any())

    def evaluate(self, x: Vector) -> Vector:
        return np.asarray(chebval((self.scale * x + self.shift) / 2, self.coefficients, tensor=False), dtype=np.float64)


@dataclass(frozen=True)
class AddStage:
    """output = left + right."""

    name: str
    left: str
    right: str
    shape: tuple[int, ...]

    rescales = 0

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.left, self.right)

    @property
    def layer(self) -> str:
        return self.name

    def evaluate(self, left: Vector, right: Vector) -> Vector:
        return left + right


@dataclass(frozen=True)
class MultiplyStage:
    """output = left * right, element by element: one product of ciphertexts, one level."""

    name: str
    left: str
    right: str
    shape: tuple[int, ...]
    layer: str

    rescales = 1

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.left, self.right)

    def evaluate(self, left: Vector, right: Vector) -> Vector:
        return left * right


@dataclass(frozen=True)
class JoinStage:
    """output[r] = element sources[r] of the inputs one after the other, where each is a ciphertext: no operation."""

    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    sources: npt.NDArray[np.int64] = field(repr=False)
    width: int  # elements of all inputs
    owner: str = ""

    rescales = 0

    @property
    def layer(self) -> str:
        return self.owner or self.name

    def evaluate(self, *xs: Vector) -> Vector:
        return np.concatenate(xs, axis=1)[:, self.sources]


Stage = LinearStage | QuadraticStage | PolynomialStage | AddStage | MultiplyStage | JoinStage
