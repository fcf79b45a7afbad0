"""A plan as text: parameters, keys, border, then one line per op with level and scale, grouped by layer."""

from __future__ import annotations

import math

from .counts import layer_counts, leaf_totals
from .ops import Kind, Op
from .plan import SHAPE, Plan

__all__ = ["plan_listing"]


def plan_listing(plan: Plan) -> str:
    """Deterministic for equal plans, so that golden listings can be compared."""
    lines = [*_header(plan), ""]
    counts = layer_counts(plan)
    info = {layer.name: layer for layer in plan.layers}
    current = ""
    for op in plan.ops:
        if op.layer != current:
            current = op.layer
            layer = info.get(current)
            totals = ", ".join(f"{n} {leaf}" for leaf, n in leaf_totals(counts[current]).items())
            lines.append(f"{current}" + (f"  [{layer.kind}: {layer.layout}]" if layer else ""))
            lines.append(f"    {totals}")
        lines.append("  " + _op_line(plan, op))
    return "\n".join(lines) + "\n"


def _header(plan: Plan) -> list[str]:
    params = plan.params
    bits = " + ".join(f"{math.log2(q):.1f}" for q in params.primes)
    special = " + ".join(f"{math.log2(q):.1f}" for q in params.special)
    lines = [
        f"plan {plan.model_name}  {f'batch {plan.batch}  ' if plan.batch > 1 else ''}N={params.degree}  log2(QP)={params.log2_qp:.1f}  primes {bits} | special {special}",
        f"keys {len(plan.keys.requests)} on the {plan.gadget} gadget, "
        f"{plan.keys.byte_size(params, seeded=True) / 1e6:.1f} MB seeded; "
        f"{len(plan.plaintexts)} plaintexts; predicted sigma 2^{math.log2(plan.sigma):.1f}"
        if plan.sigma
        else f"keys {len(plan.keys.requests)} on the {plan.gadget} gadget; {len(plan.plaintexts)} plaintexts",
    ]
    if plan.disclosure == SHAPE:
        lines.append("clients learn the shape only: the same operations, keys and parameters whatever the weights are")
    for side, ports in (("in ", plan.inputs), ("out", plan.outputs)):
        for port in ports:
            value = plan.values[port.values[0]]
            shape = "x".join(map(str, port.shape))
            lines.append(
                f"{side} {port.name} {shape} in {len(port.values)} ct, level {value.level}, scale 2^{math.log2(value.scale):.2f}"
            )
    return lines


def _op_line(plan: Plan, op: Op) -> str:
    value = plan.values[op.outputs[0]]
    names = ",".join(f"%{v}" for v in op.outputs)
    arguments = [",".join(f"%{v}" for v in op.inputs)]
    if op.kind is Kind.ROTATE:
        arguments.append(f"step {op.step}")
    if op.plaintext >= 0:
        plain = plan.plaintexts[op.plaintext]
        arguments.append(f"p{op.plaintext} (period {len(plan.vectors[plain.vector])}, 2^{math.log2(plain.scale):.2f})")
    if op.cells is not None:
        babies = len({a for _, a in op.babies})
        giants = len({b for _, b in op.groups if b})
        plain = plan.plaintexts[int(op.cells[0, 4])]
        arguments.append(
            f"{len(op.cells)} diagonals, {babies} baby + {giants} giant steps, plaintext 2^{math.log2(plain.scale):.2f}"
        )
    return (
        f"{names} = {op.kind.value}({'; '.join(arguments)})  level {value.level}  scale 2^{math.log2(value.scale):.2f}"
    )
