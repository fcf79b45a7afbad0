"""Transforms of the native kernel and of SEAL on the same residues, in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from he_runtime.params import find_primes

from .kernel_contest import seconds
from .kernel_threads import kernel_module

if TYPE_CHECKING:
    from he_runtime.backends.seal_ring import U64

__all__ = ["transform_times"]

_LIMBS = 4


def transform_times(degree: int, bits: int, path: str, rounds: int) -> tuple[float, float]:
    """Microseconds of one forward and one inverse transform of one limb together: the kernel's, then SEAL's.

    SEAL transforms ciphertexts of two polynomials of several limbs at a time; as there, each prime has its own tables
    here and each polynomial its own residues. Sums of the medians over interleaved rounds.
    """
    from he_runtime.backends.seal_ring import SealRing

    primes = find_primes(degree, [float(bits)] * (_LIMBS + 1))
    rng = np.random.default_rng(1)
    polys = np.stack([rng.integers(0, q, (2, degree), dtype=np.uint64) for q in primes[:_LIMBS]], axis=1)
    ring = SealRing(degree, primes)
    ct = ring.upload(polys)
    kernel = kernel_module()
    tables = [kernel.Ntt(degree, q, path) for q in primes[:_LIMBS]]
    rows = [(tables[i % _LIMBS], _aligned(row)) for i, row in enumerate(polys.reshape(-1, degree))]

    def forward() -> None:
        for table, row in rows:
            table.forward(row, row)

    def inverse() -> None:
        for table, row in rows:
            table.inverse(row, row)

    sides: tuple[tuple[Callable[[], object], Callable[[], object]], ...] = (
        (forward, inverse),
        (lambda: ring.evaluator.transform_to_ntt_inplace(ct), lambda: ring.evaluator.transform_from_ntt_inplace(ct)),
    )
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in sides]
    for _ in range(rounds):
        for taken, directions in zip(times, sides, strict=True):
            for call in directions:  # the one before has filled the caches with its own tables
                call()
            for samples, call in zip(taken, directions, strict=True):
                samples.append(seconds(call) * 1e6 / (2 * _LIMBS))
    ours, theirs = (sum(statistics.median(samples) for samples in taken) for taken in times)
    return ours, theirs


def _aligned(row: U64) -> U64:
    """A copy that starts on a cache line."""
    buffer = np.zeros(len(row) + 8, np.uint64)
    start = (-buffer.ctypes.data % 64) // 8
    copy = buffer[start : start + len(row)]
    copy[:] = row
    return copy
