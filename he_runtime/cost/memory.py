"""Memory of a worker that holds one plan and one client's keys, and runs one query: what SEAL and the plan allocate."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..backends.plaintexts import kept_encoded
from ..plan import Kind, Op, Plan
from ..plan.counts import FUSED
from . import native_memory
from .buffers import most_alive, value_bytes

__all__ = ["MemoryCost", "layer_plaintext_bytes", "memory"]


@dataclass(frozen=True)
class MemoryCost:
    """Bytes: encoded operands, operands before encoding (the plan keeps them), keys as loaded, ciphertexts, SEAL's tables."""

    plaintexts: int
    vectors: int
    keys: int
    ciphertexts: int
    tables: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    @property
    def largest(self) -> str:
        """The name of the part that takes most."""
        return max(vars(self), key=lambda name: getattr(self, name))


def memory(plan: Plan, backend: str = "") -> MemoryCost:
    """What loading the plan and one client's keys, and then one run, allocate; by default on a back end that uses SEAL."""
    if backend in FUSED:
        return MemoryCost(
            plaintexts=sum(native_memory.plaintext_bytes(plan, index) for index in range(len(plan.plaintexts))),
            vectors=sum(vector.nbytes for vector in plan.vectors),
            keys=native_memory.key_bytes(plan),
            ciphertexts=native_memory.buffer_bytes(plan),
            tables=native_memory.table_bytes(plan),
        )
    return MemoryCost(
        plaintexts=sum(_encoded_bytes(plan, index) for index in kept_encoded(plan)),
        vectors=sum(vector.nbytes for vector in plan.vectors),
        keys=_loaded_key_bytes(plan),
        ciphertexts=_ciphertext_bytes(plan),
        tables=_table_bytes(plan),
    )


def layer_plaintext_bytes(plan: Plan, backend: str = "") -> dict[str, int]:
    """Layer -> bytes of the encoded operands that are kept; one shared by two layers counts in both."""
    fused = backend in FUSED
    kept = set(range(len(plan.plaintexts)) if fused else kept_encoded(plan))
    size = native_memory.plaintext_bytes if fused else _encoded_bytes
    used: dict[str, set[int]] = {}
    for op in plan.ops:
        operands = {op.plaintext} if op.cells is None else set(op.cells[:, 4].tolist())
        used.setdefault(op.layer, set()).update(operands & kept)
    return {layer: sum(size(plan, index) for index in operands) for layer, operands in used.items()}


def _encoded_bytes(plan: Plan, index: int) -> int:
    return (plan.plaintexts[index].level + 1) * plan.params.degree * 8


def _loaded_key_bytes(plan: Plan) -> int:
    """SEAL keeps every key padded to the full chain."""
    primes = len(plan.params.primes)
    return len(plan.keys.requests) * 2 * primes * (primes + 1) * plan.params.degree * 8


def _table_bytes(plan: Plan) -> int:
    """For each k up to the number of primes SEAL keeps k + 1 transforms' tables in two bases, both ways, 16 bytes a root;
    and one permutation, 4 bytes an index, per rotation key."""
    params = plan.params
    roots = sum(2 * 2 * (k + 1) * 16 for k in range(1, len(params.primes) + len(params.special) + 1))
    return params.degree * (roots + 4 * len(plan.keys.requests))


def _ciphertext_bytes(plan: Plan) -> int:
    """SEAL's pool keeps what was freed. A transform also holds its rotated inputs, one sum per giant step, and a product
    before and after it joins a sum."""

    def scratch(op: Op) -> Counter[int]:
        count = len(op.babies) + len(op.groups) + 2 if op.kind is Kind.LINEAR_TRANSFORM else 0
        return Counter({value_bytes(plan, op.inputs[0]): count})

    return most_alive(plan, scratch)
