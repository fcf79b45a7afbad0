"""Measuring: rounds told apart by a probe, and calibration on real ciphertexts."""

from __future__ import annotations

import time

import pytest

from he_runtime.cost import CostTable, price
from he_runtime.cost.formulas import WIDE
from he_runtime.cost.measure import ProbeGate, measure_latency
from he_runtime.errors import ParameterError
from he_runtime.kernel import status
from he_runtime.params import CkksParams, find_primes
from tests.he_runtime.costs import LEAVES, N, params, plan

built = pytest.mark.skipif(not status().available, reason="the kernel is not built")


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
    assert t.doubts() == () and set(t.libraries) == {"tenseal", "numpy", "python"} and t.threads == 1
    assert phases[0][0] == "keys" and phases[-1][0] == "measure"
    assert price(plan(), t).latency_ms > 0


def test_calibration_measures_only_what_is_asked_for() -> None:
    pytest.importorskip("tenseal")
    from he_runtime.cost.calibrate import calibrate

    t = calibrate("tenseal", params(), [1], 0.2, only={("rotate", 1)})
    assert set(t.entries) == {("rotate", N, 1), ("upload", N, 1), ("download", N, 1)}
    with pytest.raises(ParameterError):
        calibrate("tenseal", params(), [2])


@built
def test_native_is_measured_on_long_primes_too() -> None:
    """Where nothing else is said, at the ends of a chain that 128-bit security holds: two primes of 53 bits here."""
    from he_runtime.cost.calibrate import calibrate

    t = calibrate("native", params(), seconds=0.5)
    narrow = {key for key in t.entries if not key[0].startswith(WIDE)}
    wide = {(leaf.removeprefix(WIDE), n, level) for leaf, n, level in set(t.entries) - narrow}
    assert wide == {key for key in narrow if key[2] == 0}
    assert t.lookup("rotate", N, 0, wide=1.0).seconds > 1.5 * t.lookup("rotate", N, 0).seconds
    assert CostTable.parse(t.to_json()) == t


@built
def test_a_plans_own_operations_are_measured_on_the_primes_it_has() -> None:
    from he_runtime.cost.calibrate import calibrate, single_operations

    special, *primes = find_primes(8192, [58.0, 58.0, 40.0, 40.0])
    mixed = CkksParams(8192, tuple(primes), (special,))
    border = {"upload", "download"}
    t = calibrate("native", mixed, [2], 0.2, only={("rotate", 2)})
    assert {leaf for leaf, _, _ in t.entries} == {"rotate", *border, *(WIDE + leaf for leaf in ("rotate", *border))}
    assert {level for leaf, _, level in t.entries if leaf.startswith(WIDE)} == {0, 1}
    short = calibrate("native", params(), [1], 0.2, only={("rotate", 1)})
    assert not any(leaf.startswith(WIDE) for leaf, _, _ in short.entries)
    assert any(leaf == f"{WIDE}hoisted" for leaf, _, _ in single_operations("native", mixed, 0.2))
    assert not any(leaf.startswith(WIDE) for leaf, _, _ in single_operations("native", params(), 0.2))


def test_uploads_are_timed_in_a_row() -> None:
    """As plans take them: after other work the first is up to twice as slow as those that follow it."""
    pytest.importorskip("tenseal")
    from he_runtime.cost.calibrate import single_operations

    operations = single_operations("tenseal", params(), seconds=0.5)
    for level in (0, 1):
        assert operations["upload", N, level]() > 1


def test_every_timed_operation_follows_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """In loops of its own an operation finds its operands in caches, where a plan does not have them."""
    from he_runtime.cost import rounds

    clock, seen = FakeClock(), []
    monkeypatch.setattr(rounds, "other_work", lambda: lambda: (clock.spend(7.0), seen.append("other")))

    def task(name: str) -> float:
        seen.append(name)
        clock.spend(2.0)
        return 2.0

    tasks = {name: lambda name=name: task(name) for name in ("a", "b")}
    found = rounds.in_rounds(tasks, lambda: clock.spend(1.0), 0.0, clock, lambda left: None)
    assert seen == ["other", "a", "other", "b"]
    assert found == {"a": [1.0], "b": [1.0]}, "per call, and without the other work"


def test_other_work_writes_more_than_a_core_caches() -> None:
    from he_runtime.cost.rounds import other_work

    work = other_work()
    (written,) = (cell.cell_contents for cell in work.__closure__ or ())
    before = written.copy()
    work()
    assert written.nbytes >= 8 << 20 and (written != before).all()
