"""Captured arithmetic: sums and products of a tensor with constants, with itself and with other tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .values import Call, Constant, Floats, Poly, Unsupported

__all__ = ["add", "affine", "div", "mul", "neg", "power", "rsub", "square"]


def affine(x: Poly, scale: Floats, shift: Floats) -> Poly:
    return replace(x, a=scale * x.a, b=scale * x.b, c=scale * x.c + shift, source="")


def _coefficient(value: Any, x: Poly) -> Floats:
    """A constant operand as a coefficient per channel, shape () or (channels,)."""
    if isinstance(value, (torch.SymInt, torch.SymFloat)):
        raise Unsupported("a factor or term depends on the size of the batch", "constants")
    array = value.value.detach().double().numpy() if isinstance(value, Constant) else np.array(float(value))
    if not np.isfinite(array).all():
        raise Unsupported("a constant is infinite or not a number", "finite constants")
    if array.ndim > len(x.shape):
        if array.ndim > len(x.shape) + 1 or array.shape[0] != 1:
            raise Unsupported(f"a constant of shape {array.shape} differs between samples", "one constant per channel")
        array = array[0]
    array = array.reshape((1,) * (len(x.shape) - array.ndim) + array.shape)
    if any(size not in (1, own) for size, own in zip(array.shape, x.shape, strict=True)):
        raise Unsupported(
            f"a constant of shape {array.shape} would enlarge a tensor of shape {x.shape}", "equal shapes"
        )
    flat = array.reshape(array.shape[0], -1)
    if not (flat == flat[:, :1]).all():
        raise Unsupported("the constant differs between the positions of a channel", "one constant per channel")
    column = flat[:, 0]
    return np.asarray(column[0] if column.size == 1 else column, dtype=np.float64)


def add(call: Call) -> Poly:
    alpha = _alpha(call)
    return _sum(call, call["self"], call["other"], -alpha if "sub" in call.target else alpha)


def rsub(call: Call) -> Poly:
    return _sum(call, call["other"], call["self"], -_alpha(call))


def _alpha(call: Call) -> float:
    return float(1 if call["alpha"] is None else call["alpha"])


def _sum(call: Call, left: Any, right: Any, alpha: float) -> Poly:
    """left + alpha * right, one of them at least a Poly."""
    if not isinstance(left, Poly):
        return affine(right, np.array(alpha), _coefficient(left, right))
    if not isinstance(right, Poly):
        return affine(left, np.array(1.0), alpha * _coefficient(right, left))
    if left.shape != right.shape:
        raise Unsupported(f"it broadcasts {right.shape} against {left.shape}", "tensors of equal shape")
    right = affine(right, np.array(alpha), np.array(0.0)) if alpha != 1 else right
    if left.base == right.base:
        return Poly(left.base, left.shape, left.a + right.a, left.b + right.b, left.c + right.c)
    return call.emit("add", *(replace(v, source=v.source or call.name) for v in (left, right)))


def mul(call: Call) -> Poly:
    left, right = call["self"], call["other"]
    if isinstance(left, Poly) and isinstance(right, Poly):
        return _product(call, left, right)
    x, factor = (left, right) if isinstance(left, Poly) else (right, left)
    return affine(x, _coefficient(factor, x), np.array(0.0))


def _product(call: Call, left: Poly, right: Poly) -> Poly:
    """Two affine functions of one node make a quadratic, and anything is one once it is a node; others are multiplied."""
    if left.shape != right.shape:
        raise Unsupported(f"it broadcasts {right.shape} against {left.shape}", "tensors of equal shape")
    if left.base != right.base or left.degree + right.degree > 2:
        left, right = (
            Poly(call.builder.materialize(replace(v, source=v.source or call.name)), v.shape) for v in (left, right)
        )
    if left.base != right.base:
        return call.emit("multiply", left, right)
    return Poly(left.base, left.shape, left.b * right.b, left.b * right.c + left.c * right.b, left.c * right.c)


def div(call: Call) -> Poly:
    x, divisor = call["self"], call["other"]
    if not isinstance(x, Poly) or isinstance(divisor, Poly):
        raise Unsupported("it divides by a tensor that depends on the input", "division by a constant")
    constant = _coefficient(divisor, x)
    if not constant.all():
        raise Unsupported("it divides by zero", "a divisor other than zero")
    return affine(x, 1.0 / constant, np.array(0.0))


def neg(call: Call) -> Poly:
    return affine(call.poly("self"), np.array(-1.0), np.array(0.0))


def square(call: Call) -> Poly:
    return _product(call, call.poly("self"), call.poly("self"))


def power(call: Call) -> Poly:
    exponent = call["exponent"]
    if exponent == 1:
        return call.poly("self")
    if exponent != 2:
        raise Unsupported(f"the power {exponent}", "x**2")
    return square(call)
