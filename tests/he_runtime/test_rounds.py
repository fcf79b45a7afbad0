"""Routines timed in turn: a disturbance, however long, moves neither their medians nor their order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from he_runtime.cost.measure import Rounds


class Machine:
    """A clock that routines advance; `load` is the factor by which everything is slower."""

    def __init__(self) -> None:
        self.now, self.load = 0.0, 1.0

    def work(self, seconds: float) -> Callable[[], None]:
        def routine() -> None:
            self.now += seconds * self.load

        return routine


def rounds(machine: Machine) -> Rounds[str]:
    routines = {"short": machine.work(1.0), "long": machine.work(1.2)}
    return Rounds(routines, machine.work(0.1), lambda: machine.now)


def test_a_quiet_machine_keeps_every_call() -> None:
    found = rounds(Machine())
    found.go(7)
    assert found.steady == 7
    short, long = found.measurements()["short"], found.measurements()["long"]
    assert [short.median_ms, long.median_ms] == pytest.approx([1000, 1200])
    assert (short.rounds, short.discarded, short.disturbed) == (7, 0, 0)


def test_a_disturbance_of_most_rounds_is_told_and_discarded() -> None:
    machine = Machine()
    found = rounds(machine)
    for load in (1.5, 1.5, 1.5, 1.0, 1.0, 1.6, 1.4):
        machine.load = load
        found.go(1)
    assert found.steady == 2
    measured = found.measurements()
    assert measured["short"].median_ms == pytest.approx(1000)
    assert measured["long"].median_ms == pytest.approx(1200)
    assert measured["short"].discarded == 5 and measured["short"].disturbed == 0


def test_a_routine_that_never_had_quiet_says_so() -> None:
    machine = Machine()

    def loaded() -> None:
        machine.load = 2.0
        machine.now += 1.0 * machine.load

    def quiet() -> None:
        machine.now += 1.0
        machine.load = 1.0

    found = Rounds({"loaded": loaded, "quiet": quiet}, machine.work(0.1), lambda: machine.now)
    machine.load = 1.0
    found.go(4)
    assert found.steady == 0
    assert found.measurements()["loaded"].disturbed > 0


def test_a_routine_that_says_how_many_calls_it_made_is_measured_per_call() -> None:
    machine = Machine()
    calls = iter([4.0, 4.0, 2.0, 2.5])

    def several() -> float:
        made = next(calls)
        machine.now += 0.5 * made
        return made

    found = Rounds({"several": several, "one": machine.work(3.0)}, machine.work(0.1), lambda: machine.now)
    found.go(3)
    measured = found.measurements()
    assert [measured[k].median_ms for k in ("several", "one")] == pytest.approx([500, 3000])
