"""Time one forward and one inverse transform: SEAL's and every path of the kernel, interleaved, medians.

    PYTHONPATH=. python benchmarks/ntt.py [--degree 16384] [--bits 50] [--rounds 201] [--json]

Needs the built kernel (he_runtime.kernel._kernel) and tenseal. SEAL transforms a ciphertext of two polynomials of several
limbs at a time; its figures are per limb.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from tests.kernel.primes import primes_below
from tests.kernel.seal_ring import U64, SealRing

LIMBS = 4


def aligned(row: U64) -> U64:
    """A copy that starts on a cache line."""
    buffer = np.zeros(len(row) + 8, np.uint64)
    start = (-buffer.ctypes.data % 64) // 8
    copy = buffer[start : start + len(row)]
    copy[:] = row
    return copy


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e6


def measure(degree: int, bits: int, rounds: int) -> dict[str, dict[str, float]]:
    kernel = importlib.import_module("he_runtime.kernel._kernel")
    primes = primes_below(1 << bits, degree, LIMBS + 1)
    ring = SealRing(degree, primes)
    rng = np.random.default_rng(1)
    polys = np.stack([rng.integers(0, q, (2, degree), dtype=np.uint64) for q in primes[:LIMBS]], axis=1)
    ct = ring.upload(polys)
    work: dict[str, list[Callable[[], object]]] = {
        "seal": [
            lambda: ring.evaluator.transform_to_ntt_inplace(ct),
            lambda: ring.evaluator.transform_from_ntt_inplace(ct),
        ]
    }
    for path in kernel.paths():
        # As in SEAL's call, each prime has its own tables and each polynomial its own residues.
        tables = [kernel.Ntt(degree, q, path) for q in primes[:LIMBS]]
        rows = [(tables[i % LIMBS], aligned(row)) for i, row in enumerate(polys.reshape(-1, degree))]
        work[path] = [
            lambda rows=rows: [table.forward(row, row) for table, row in rows],
            lambda rows=rows: [table.inverse(row, row) for table, row in rows],
        ]
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in work}
    for _ in range(rounds):
        for name, directions in work.items():
            for call in directions:  # the one before has filled the caches with its own tables
                call()
            for taken, call in zip(times[name], directions, strict=True):
                taken.append(timed(call) / (2 * LIMBS))
    result = {}
    seal_sum = sum(statistics.median(t) for t in times["seal"])
    for name, (forward, inverse) in times.items():
        f, i = statistics.median(forward), statistics.median(inverse)
        result[name] = {"forward_us": round(f, 2), "inverse_us": round(i, 2), "ratio": round(seal_sum / (f + i), 2)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--degree", type=int, default=16384)
    parser.add_argument("--bits", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=201)
    parser.add_argument("--json", action="store_true", help="one object on standard output")
    arguments = parser.parse_args()
    result = measure(arguments.degree, arguments.bits, arguments.rounds)
    if arguments.json:
        print(json.dumps({"degree": arguments.degree, "bits": arguments.bits, **result}))
        return
    for name, row in result.items():
        print(
            f"{name:10} forward {row['forward_us']:8.2f} us  inverse {row['inverse_us']:8.2f} us  {row['ratio']:6.2f}x"
        )


if __name__ == "__main__":
    main()
