"""The evaluator interface: leaves that a backend implements, and the walk that every reading of a plan shares.

Handles are opaque. A backend without hoisting inherits the default expansion of LINEAR_TRANSFORM below; a backend with
a fused transform overrides it. Counters are incremented inside the backend's leaf routines, never from the plan.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from ..plan import Kind, Op, Plan

__all__ = ["Check", "Evaluator", "OnLayer", "OnOp", "no_check", "walk"]

H = TypeVar("H")
Check = Callable[[], None]
OnLayer = Callable[[str], None]
OnOp = Callable[[int], None]


def no_check() -> None:
    """Lets everything go on."""


def _no_watch(what: object) -> None:
    """Looks away."""


class Evaluator(ABC, Generic[H]):
    """Evaluates the ops of one plan on handles of type H.

    `counters` maps (leaf, level of the operand) to how often the leaf ran. Plaintexts are addressed by their index in
    the plan and were encoded when the evaluator was made. Rotations are to the left, steps in 1..slots-1.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.counters: Counter[tuple[str, int]] = Counter()

    @abstractmethod
    def add(self, x: H, y: H) -> H: ...

    @abstractmethod
    def sub(self, x: H, y: H) -> H: ...

    @abstractmethod
    def negate(self, x: H) -> H: ...

    @abstractmethod
    def add_plain(self, x: H, plaintext: int) -> H: ...

    @abstractmethod
    def mul_plain(self, x: H, plaintext: int) -> H: ...

    @abstractmethod
    def mul(self, x: H, y: H) -> H: ...

    @abstractmethod
    def square(self, x: H) -> H: ...

    @abstractmethod
    def relinearize(self, x: H) -> H: ...

    @abstractmethod
    def rescale(self, x: H) -> H: ...

    @abstractmethod
    def mod_switch(self, x: H) -> H: ...

    @abstractmethod
    def rotate(self, x: H, step: int) -> H: ...

    @abstractmethod
    def conjugate(self, x: H) -> H: ...

    def finish(self, x: H, value: int) -> H:
        """Called with every computed value and its index in the plan; a hook for exact scales or statistics."""
        return x

    def term(self, x: H, plaintext: int) -> H:
        """A product with an operand that is a sign, without the sign: for ciphertexts no operation, x as it is."""
        return x

    def reread(self, x: H, scale: float) -> H:
        """A sum of such terms at the scale of products: no arithmetic, but a copy where a handle holds its scale."""
        return x

    def turned(self, x: H, step: int) -> H:
        """A rotation by `step`, by way of steps that have keys."""
        for part in self.plan.route(step):
            x = self.rotate(x, part)
        return x

    def linear_transform(self, op: Op, xs: Sequence[H], check: Check = no_check) -> list[H]:
        """The default expansion: every baby rotation once, accumulate per giant step, rotate, sum."""
        assert op.cells is not None
        rotated: dict[tuple[int, int], H] = {(j, 0): x for j, x in enumerate(xs)}
        for j, baby in op.babies:
            check()
            rotated[j, baby] = self.turned(xs[j], baby)
        sums = self._sums(op, rotated, check)
        outputs: dict[int, H] = {}
        for i, giant in op.groups:
            check()
            part = self.turned(sums[i, giant], giant) if giant else sums[i, giant]
            outputs[i] = self.add(outputs[i], part) if i in outputs else part
        return [outputs[i] for i in range(len(op.outputs))]

    def _sums(self, op: Op, rotated: Mapping[tuple[int, int], H], check: Check) -> dict[tuple[int, int], H]:
        """(output, giant step) -> its sum of products. Terms of one sign are added without any, in sums of their own."""
        assert op.cells is not None
        parts: dict[int, dict[tuple[int, int], H]] = {0: {}, 1: {}, -1: {}}
        for i, j, baby, giant, plaintext in op.cells.tolist():
            check()
            sign, x = self.plan.signs.get(plaintext, 0), rotated[j, baby]
            term = self.term(x, plaintext) if sign else self.mul_plain(x, plaintext)
            part = parts[sign]
            part[i, giant] = self.add(part[i, giant], term) if (i, giant) in part else term
        products, plus, minus = parts[0], parts[1], parts[-1]
        scale, given = self.plan.values[op.outputs[0]].scale, {id(x) for x in rotated.values()}
        sums = dict(products)
        for group, x in plus.items():
            if group in products or (group not in minus and id(x) in given):
                x = self.reread(x, scale)
            sums[group] = self.add(sums[group], x) if group in sums else x
        for group, x in minus.items():
            x = self.reread(x, scale) if group in products else x
            sums[group] = self.sub(sums[group], x) if group in sums else self.negate(x)
        return sums


def _leaf(evaluator: Evaluator[H], op: Op, xs: Sequence[H]) -> H:
    match op.kind:
        case Kind.ADD_PLAIN:
            return evaluator.add_plain(xs[0], op.plaintext)
        case Kind.MUL_PLAIN:
            return evaluator.mul_plain(xs[0], op.plaintext)
        case Kind.ROTATE:
            return evaluator.turned(xs[0], op.step)
        case _:
            leaf: Callable[..., H] = getattr(evaluator, op.kind.value)
            return leaf(*xs)


def walk(
    plan: Plan,
    evaluator: Evaluator[H],
    inputs: Sequence[H],
    check: Check = no_check,
    on_layer: OnLayer = _no_watch,
    on_op: OnOp = _no_watch,
) -> list[H]:
    """Run every op in order; values are dropped after their last use. Returns the output ports' values, flat.

    `check` is called between any two operations and may raise Cancelled. `on_layer` is called with the name of the
    layer whose operations come next; layers may interleave, so that one may be named more than once. `on_op` is called
    with the index of each op of the plan as it begins.
    """
    live: dict[int, H] = dict(zip((v for port in plan.inputs for v in port.values), inputs, strict=True))
    last_use, layer = plan.last_use, None
    for index, op in enumerate(plan.ops):
        check()
        if op.layer != layer:
            layer = op.layer
            on_layer(layer)
        on_op(index)
        operands = [live[v] for v in op.inputs]
        if op.kind is Kind.LINEAR_TRANSFORM:
            results = evaluator.linear_transform(op, operands, check)
        else:
            results = [_leaf(evaluator, op, operands)]
        for value, result in zip(op.outputs, results, strict=True):
            live[value] = evaluator.finish(result, value)
        for value in set(op.inputs):
            if last_use[value] == index:
                del live[value]
    return [live[v] for port in plan.outputs for v in port.values]
