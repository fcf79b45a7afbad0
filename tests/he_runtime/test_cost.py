"""Cost tables, prices, calibration and the latency probe."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from he_runtime.cost import CostEntry, CostTable, load_default, price
from he_runtime.cost.formulas import leaf_work
from he_runtime.cost.measure import ProbeGate, measure_latency
from he_runtime.errors import ParameterError, PlanError, Reason, WireError
from he_runtime.params import CkksParams, find_primes
from he_runtime.plan import Kind, Op, Plaintext, Plan, Port, ValueType, verify
from he_runtime.wire import ciphertexts_byte_size, key_set_byte_size

N = 4096
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
        )
    )


def test_the_price_is_the_sum_by_hand() -> None:
    t, report = table(), price(plan(), table())
    by_hand = Counter(
        {
            ("rotate", 1): 1, ("square", 1): 1, ("relinearize", 1): 1, ("rescale", 1): 1,
            ("rotate", 0): 2, ("mul_plain", 0): 3, ("add", 0): 2, ("upload", 1): 1, ("download", 0): 1,
        }
    )  # fmt: skip
    seconds = sum(n * t.entries[leaf, N, level].seconds for (leaf, level), n in by_hand.items())
    assert report.latency_ms == pytest.approx(seconds * 1e3)
    assert report.low_ms == pytest.approx(seconds * 0.9e3) and report.high_ms == pytest.approx(seconds * 1.1e3)
    assert sum(x.ms for x in report.layers) + report.upload_ms + report.download_ms == pytest.approx(report.latency_ms)
    assert [x.name for x in report.layers] == ["first", "second"]
    assert report.counts == {"add": 2, "mul_plain": 3, "square": 1, "relinearize": 1, "rescale": 1, "rotate": 3}


def test_bytes_levels_and_sigma_are_the_plans() -> None:
    p, report = plan(), price(plan(), table())
    assert report.upload_bytes == ciphertexts_byte_size(1, 1, p.params, seeded=True)
    assert report.download_bytes == ciphertexts_byte_size(1, 0, p.params)
    assert report.key_bytes == key_set_byte_size(p.keys, p.params, True)
    assert report.plaintext_bytes == 3 * N * 8
    assert (report.levels, report.sigma) == (1, 0.5)
    keys = 4 * 2 * 2 * 3 * N * 8  # steps 1, 2 and 3 and the relinearization key, two primes
    ciphertexts = (2 + 3) * 2 * N * 8  # the widest moment: the rotated input and its square
    assert report.peak_bytes == report.plaintext_bytes + keys + ciphertexts


def test_a_shipped_table_claims_an_order_of_magnitude_only() -> None:
    measured, shipped = price(plan(), table()), price(plan(), table("shipped"))
    assert shipped.confidence == "order of magnitude" != measured.confidence
    assert shipped.latency_ms == measured.latency_ms
    assert shipped.high_ms / shipped.low_ms == pytest.approx(10)


def test_a_report_is_plain_json() -> None:
    record = json.loads(json.dumps(price(plan(), table()).to_json()))
    assert record["counts"]["rotate"] == 3 and record["layers"][0]["name"] == "first"


def test_pricing_loads_no_he_library_and_no_secret_side() -> None:
    code = (
        "import sys; import he_runtime.cost as c; c.load_default('tenseal');"
        "bad = [m for m in sys.modules if m.startswith(('tenseal', 'Pyfhel', 'torch', 'he_runtime.backends.tenseal'))"
        " or m.startswith('he_runtime.cost.calibrate')]; sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_lookup_is_exact_where_measured_and_follows_the_counts_elsewhere() -> None:
    t = table()
    assert t.lookup("rotate", N, 1) is t.entries["rotate", N, 1]
    outside = t.lookup("rotate", 2 * N, 5).seconds / t.entries["rotate", N, 1].seconds
    assert outside == pytest.approx(leaf_work("rotate", 2 * N, 5) / leaf_work("rotate", N, 1))
    assert t.lookup("conjugate", N, 1).seconds == pytest.approx(t.lookup("rotate", N, 1).seconds)


def test_lookup_between_levels_recovers_a_cost_that_follows_the_formula() -> None:
    entries = {("rotate", N, level): CostEntry(1e-9 * leaf_work("rotate", N, level), 0.0) for level in (0, 8)}
    t = dataclasses.replace(table(), entries=entries)
    for level in range(12):
        assert t.lookup("rotate", N, level).seconds == pytest.approx(1e-9 * leaf_work("rotate", N, level))


@pytest.mark.parametrize("leaf", (*LEAVES, "conjugate", "upload", "download"))
def test_the_shipped_table_prices_every_leaf_and_grows_with_level_and_degree(leaf: str) -> None:
    t = load_default("tenseal")
    assert t.kind == "shipped"
    assert 0 < t.lookup(leaf, 8192, 1).seconds < t.lookup(leaf, 32768, 14).seconds < 10


def test_a_key_switch_is_limbs_squared_transforms() -> None:
    transform = N / 2 * math.log2(N)
    assert leaf_work("rotate", N, 2) == pytest.approx(5 * 4 * transform + (2 * 3 * 4 + 12) * N)
    assert leaf_work("rescale", N, 2) == pytest.approx(6 * transform + 6 * N)


def test_a_missing_leaf_or_table_is_a_typed_error() -> None:
    only_add = dataclasses.replace(table(), entries={("add", N, 0): CostEntry(1e-6, 0.0)})
    with pytest.raises(PlanError, match="rotate"):
        only_add.lookup("rotate", N, 0)
    for name in ("none", "../tables/tenseal", ""):
        with pytest.raises(PlanError, match="no cost table"):
            load_default(name)


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    t = table()
    loaded = CostTable.load(t.save(tmp_path / "t.json"))
    assert loaded == t and loaded.digest == t.digest
    with pytest.raises(WireError, match="absent"):
        CostTable.load(tmp_path / "absent.json")


def _sealed(**changes: object) -> bytes:
    """A record with changes and, where the changes allow one, a digest that fits."""
    record = json.loads(table().to_json()) | changes
    return json.dumps(record).encode()


HOSTILE = {
    "empty": b"",
    "not json": b"{",
    "not a record": b"[1]",
    "deep": b"[" * 5000,
    "not text": b"\xff\xfe",
    "no entries": _sealed(entries=[]),
    "entries of another type": _sealed(entries={"a": 1}),
    "short row": _sealed(entries=[["add", N, 0, 1.0]]),
    "unknown leaf": _sealed(entries=[["evil", N, 0, 1.0, 0.1]]),
    "negative time": _sealed(entries=[["add", N, 0, -1.0, 0.1]]),
    "zero time": _sealed(entries=[["add", N, 0, 0.0, 0.1]]),
    "boolean level": _sealed(entries=[["add", N, True, 1.0, 0.1]]),
    "level out of range": _sealed(entries=[["add", N, 10**9, 1.0, 0.1]]),
    "repeated": _sealed(entries=[["add", N, 0, 1.0, 0.1]] * 2),
    "infinite": table().to_json().replace(b'"rotate",4096,0,', b'"rotate",4096,0,Infinity,', 1),
    "not a number": _sealed(entries=[["add", N, 0, "1", 0.1]]),
    "kind": _sealed(kind="exact"),
    "threads": _sealed(threads=0),
    "libraries": _sealed(libraries=[1]),
    "long text": _sealed(machine="x" * 1000),
    "extra field": _sealed(extra=1),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_tables_are_refused(data: bytes) -> None:
    with pytest.raises(WireError) as caught:
        CostTable.parse(data)
    assert caught.value.reason is Reason.BYTES_MALFORMED


def test_altered_newer_and_huge_tables_are_refused_by_reason() -> None:
    altered = table().to_json().replace(b"a machine", b"b machine")
    for data, reason in (
        (altered, Reason.DIGEST_MISMATCH),
        (_sealed(version=2), Reason.VERSION_UNKNOWN),
        (b" " * (5 << 20), Reason.LIMIT_EXCEEDED),
    ):
        with pytest.raises(WireError) as caught:
            CostTable.parse(data)
        assert caught.value.reason is reason


class FakeClock:
    """A clock that only the timed calls advance."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


def test_rounds_with_a_moved_probe_are_repeated_and_never_rescaled() -> None:
    clock = FakeClock()
    times = iter([1.0, 1.0, 5.0, *[1.0] * 20])  # warm-up, a good round, a disturbed one, good ones
    probes = iter([0.1] * 5 + [0.1, 0.1] + [0.1, 0.2] + [0.1] * 40)
    result = measure_latency(lambda: clock.spend(next(times)), lambda: clock.spend(next(probes)), runs=7, clock=clock)
    assert (result.rounds, result.discarded, result.disturbed) == (7, 1, 0)
    assert result.median_ms == pytest.approx(1000.0)


def test_repeats_are_bounded_and_told() -> None:
    clock, state = FakeClock(), [1.0]

    def growing() -> None:
        state[0] *= 1.5
        clock.spend(state[0])

    result = measure_latency(lambda: clock.spend(1.0), growing, runs=3, max_repeats=4, clock=clock)
    assert (result.rounds, result.discarded, result.disturbed) == (3, 4, 3)
    with pytest.raises(ParameterError):
        measure_latency(lambda: None, lambda: None, runs=0)


@pytest.mark.parametrize(("seconds", "steady"), [(1.0, True), (1.09, True), (0.91, True), (1.2, False), (0.8, False)])
def test_the_gate_allows_ten_percent(seconds: float, steady: bool) -> None:
    clock = FakeClock()
    probes = iter([1.0] * 5 + [seconds])
    gate = ProbeGate(lambda: clock.spend(next(probes)), clock=clock)
    assert gate.check() is steady


def test_calibration_measures_every_leaf_on_real_ciphertexts() -> None:
    pytest.importorskip("tenseal")
    from he_runtime.cost.calibrate import calibrate

    phases: list[tuple[str, float]] = []
    start = time.perf_counter()
    t = calibrate("tenseal", params(), seconds=1.0, progress=lambda phase, share: phases.append((phase, share)))
    assert time.perf_counter() - start < 20
    expected = {(leaf, N, level) for leaf in (*LEAVES, "upload", "download") for level in (0, 1)}
    expected -= {("rescale", N, 0), ("mod_switch", N, 0)}
    assert set(t.entries) == expected
    assert all(e.seconds > 0 and e.spread >= 0 for e in t.entries.values())
    assert t.entries["rotate", N, 1].seconds > t.entries["add", N, 1].seconds
    assert CostTable.parse(t.to_json()) == t
    assert phases[0][0] == "keys" and phases[-1][0] == "measure"
    assert price(plan(), t).latency_ms > 0


def test_calibration_measures_only_what_is_asked_for() -> None:
    pytest.importorskip("tenseal")
    from he_runtime.cost.calibrate import calibrate

    t = calibrate("tenseal", params(), [1], 0.2, only={("rotate", 1)})
    assert set(t.entries) == {("rotate", N, 1), ("upload", N, 1), ("download", N, 1)}
    with pytest.raises(ParameterError):
        calibrate("tenseal", params(), [2])
