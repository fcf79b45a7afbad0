"""Encoded operands, made once when the plan is loaded and shared by all requests.

One feature per ciphertext means a constant per weight: hundreds of thousands, each a whole polynomial when encoded, but
encoded in microseconds. Beyond a budget these are encoded anew at each use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..plan import Plan

__all__ = ["PlaintextStore", "kept_encoded"]

_CONSTANT_BYTES = 1 << 30


def kept_encoded(plan: Plan) -> Iterator[int]:
    """Indices of the plaintexts that stay encoded between uses: all vectors, and constants up to the budget."""
    spent = 0
    for index, plain in enumerate(plan.plaintexts):
        is_constant = len(plan.vectors[plain.vector]) == 1
        spent += is_constant * (plain.level + 1) * plan.params.degree * 8
        if not is_constant or spent <= _CONSTANT_BYTES:
            yield index


class PlaintextStore:
    """store[k] is the k-th plaintext of the plan, as `encode` makes it."""

    def __init__(self, plan: Plan, encode: Callable[[int], Any]) -> None:
        self._encode = encode
        self._encoded: list[Any] = [None] * len(plan.plaintexts)
        for index in kept_encoded(plan):
            self._encoded[index] = encode(index)

    def __getitem__(self, index: int) -> Any:
        encoded = self._encoded[index]
        return self._encode(index) if encoded is None else encoded
