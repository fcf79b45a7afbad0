"""Memory of a worker on the native back end: what the kernel allocates, buffer by buffer."""

from __future__ import annotations

from collections import Counter
from functools import partial

from ..gadget import Gadget
from ..plan import Kind, Op, Plan
from .buffers import most_alive

__all__ = ["buffer_bytes", "key_bytes", "plaintext_bytes", "table_bytes"]

_WORD = 8


def plaintext_bytes(plan: Plan, index: int) -> int:
    """One encoded operand: residues of every row, special ones too where sums are in the extended basis; a constant is a few."""
    plain = plan.plaintexts[index]
    rows = plain.level + 1 + (len(plan.params.special) if index in plan.extended_plaintexts else 0)
    return rows * _WORD * (1 if len(plan.vectors[plain.vector]) == 1 else plan.params.degree)


def key_bytes(plan: Plan) -> int:
    """Keys as loaded, each at its own level, and the largest twice more: as it is read, and with its seeds expanded."""
    each = [request.byte_size(plan.params, gadget=plan.gadget) for request in plan.keys.requests]
    return sum(each) + 2 * max(each, default=0)


def table_bytes(plan: Plan) -> int:
    """Two words a root for every prime, and half a byte an index for every automorphism."""
    params = plan.params
    return params.degree * (16 * (len(params.primes) + len(params.special)) + len(plan.keys.requests) // 2)


def buffer_bytes(plan: Plan) -> int:
    """Ciphertexts, and what a transform or a key switch works in."""
    return most_alive(plan, partial(_scratch, plan))


def _scratch(plan: Plan, op: Op) -> Counter[int]:
    """Buffers of an op by their bytes."""
    row, special = plan.params.degree * _WORD, len(plan.params.special)
    live = plan.values[op.inputs[0]].level + 1
    rows, digits = live + special, Gadget.parse(plan.gadget).digit_count(live - 1)
    if op.kind in (Kind.ROTATE, Kind.CONJUGATE, Kind.RELINEARIZE):
        return Counter({row: live + 2 * special, live * row: 1, 2 * rows * row: 1, digits * row: 1})
    if not plan.is_direct(op):
        return Counter()
    turned = len({j for j, _ in op.babies})
    giants = sum(1 for _, step in op.groups if step)
    if not op.babies and not giants:
        return Counter()
    sums = rows if op.babies else live
    scratch = Counter({row: max(turned, giants) * live + (giants + 2 * len(op.outputs)) * special})
    scratch[digits * rows * row] += turned
    scratch[2 * sums * row] += len(op.groups)
    scratch[2 * rows * row] += len(op.outputs)
    scratch[digits * row] += 1 if giants else 0
    return scratch
