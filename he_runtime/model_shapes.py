"""Which shapes fit which op: what a model's nodes of several tensors are checked against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .errors import ModelError

if TYPE_CHECKING:
    from .model import Node

__all__ = ["check_shapes"]

Shape = tuple[int, ...]


def check_shapes(node: Node, inputs: Sequence[Shape]) -> None:
    """ModelError unless the shapes of the inputs give the node's own, for the ops of several tensors."""
    rule = _RULES.get(node.op)
    if rule is None:
        return
    expected, need = rule(node, inputs)
    if expected != tuple(node.shape):
        raise ModelError(
            f"cannot use node {node.name!r} ({node.op}): got inputs of shapes {list(inputs)} and an output of shape "
            f"{tuple(node.shape)}, need {need}"
        )


def _equal(_: Node, inputs: Sequence[Shape]) -> tuple[Shape | None, str]:
    return (inputs[0] if len(set(inputs)) == 1 else None), "inputs and output of one shape"


def _concat(_: Node, inputs: Sequence[Shape]) -> tuple[Shape | None, str]:
    joined = (sum(s[0] for s in inputs), *inputs[0][1:]) if all(inputs) else None
    fits = len({s[1:] for s in inputs}) == 1
    return (joined if fits else None), "shapes that differ in the first axis only, and their sum there as output"


def _matmul(node: Node, inputs: Sequence[Shape]) -> tuple[Shape | None, str]:
    need = "(..., m, k) x (..., k, n) = (..., m, n), unless transpose_left or transpose_right swap the last two axes"
    if any(len(s) < 2 for s in inputs):
        return None, need
    (*heads, rows, inner), (*others, same, columns) = inputs
    if node.attrs.get("transpose_left"):
        rows, inner = inner, rows
    if node.attrs.get("transpose_right"):
        same, columns = columns, same
    return ((*heads, rows, columns) if heads == others and inner == same else None), need


# One row per op; each yields the shape of the output, or None where the inputs do not go together.
_RULES: dict[str, Callable[[Node, Sequence[Shape]], tuple[Shape | None, str]]] = {
    "add": _equal,
    "multiply": _equal,
    "polynomial": _equal,
    "concat": _concat,
    "matmul": _matmul,
}
