"""A cost table with a time of its own for every leaf, and a small plan to price by it."""

from __future__ import annotations

import datetime

import numpy as np

from he_runtime.cost import CostEntry, CostTable, Environment
from he_runtime.params import CkksParams, find_primes
from he_runtime.plan import Kind, Op, Plaintext, Plan, Port, ValueType, verify

N = 4096
HERE = Environment("a machine", {"tenseal": "0.3.18"}, datetime.datetime(2026, 2, 1, tzinfo=datetime.UTC))
LEAVES = ("add", "add_plain", "mul_plain", "mul", "square", "relinearize", "rescale", "mod_switch", "rotate")


def params() -> CkksParams:
    special, *primes = find_primes(N, [35.0, 35.0, 35.0])
    return CkksParams(N, tuple(primes), (special,))


def table(kind: str = "measured", spread: float = 0.1) -> CostTable:
    """Every leaf at levels 0 and 1, each with a time of its own."""
    names = (*LEAVES, "upload", "download")
    entries = {
        (leaf, N, level): CostEntry(1e-6 * (10 * k + level + 1), spread)
        for k, leaf in enumerate(names)
        for level in (0, 1)
    }
    return CostTable("tenseal", 1, "a machine", {"tenseal": "0.3.18"}, "2026-01-01T00:00:00+00:00", kind, entries)  # type: ignore[arg-type]


def plan() -> Plan:
    """rotate, square, relinearize, rescale, then a transform of three diagonals at level 0."""
    p, s = params(), 2.0**14
    low = s * s / p.primes[1]
    cells = np.array([[0, 0, 0, 0, 0], [0, 0, 1, 0, 1], [0, 0, 1, 2, 2]])
    slot_map = np.arange(p.slots, dtype=np.int32)[None]
    return verify(
        Plan(
            model_name="t",
            model_digest="",
            params=p,
            ops=(
                Op(Kind.ROTATE, (0,), (1,), "first", step=3),
                Op(Kind.SQUARE, (1,), (2,), "first"),
                Op(Kind.RELINEARIZE, (2,), (3,), "first"),
                Op(Kind.RESCALE, (3,), (4,), "second"),
                Op(Kind.LINEAR_TRANSFORM, (4,), (5,), "second", cells=cells),
            ),
            values=(
                ValueType(1, s),
                ValueType(1, s),
                ValueType(1, s * s, 3),
                ValueType(1, s * s),
                ValueType(0, low),
                ValueType(0, low * 4),
            ),
            vectors=tuple(np.array([k + 1.0]) for k in range(3)),
            plaintexts=tuple(Plaintext(k, 0, 4.0) for k in range(3)),
            inputs=(Port("x", (p.slots,), (0,), slot_map),),
            outputs=(Port("y", (p.slots,), (5,), slot_map),),
            sigma=0.5,
            error_bound=3.0,
        )
    )
