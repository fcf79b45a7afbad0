"""The corpus: which group the i-th case is of, and what must hold around each of them.

A case is made of the seed and its number alone, so that any one can be played again without those before it; only what is
random in good keys and ciphertexts (their encryptions) differs from run to run.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from tests.hostile.belongings import BELONGINGS
from tests.hostile.case import Case, Group
from tests.hostile.ciphertexts import CIPHERTEXTS
from tests.hostile.key_sets import KEY_SETS
from tests.hostile.manifests import MANIFESTS
from tests.hostile.messages import MESSAGES
from tests.hostile.processes import Sizes, forget_peaks
from tests.hostile.secrets_in import SECRETS, traces
from tests.hostile.transport import TRANSPORT
from tests.hostile.world import Outcome, World

__all__ = ["GROUPS", "MOST_SECONDS", "Report", "place", "play"]

GROUPS: dict[str, Group] = {**CIPHERTEXTS, **KEY_SETS, **MESSAGES, **BELONGINGS, **MANIFESTS, **SECRETS, **TRANSPORT}
# How often in one round of the schedule; what is not named, this often.
_OFTEN = 12
_SHARES = {
    **dict.fromkeys(KEY_SETS, 6),
    **dict.fromkeys(TRANSPORT, 3),
    "key sets: header and table": 10,
    "key sets: records": 10,
    "key sets: good": 2,
    "ciphertexts: none": 3,
    "ciphertexts: random residues": 6,
    "connections: no HTTP/2": 6,
    "connections: calls without an end": 1,
    "floods: empty chunks": 1,
}
MOST_SECONDS = 5.0
_GOOD_EVERY = 250
_MOST_FAILURES = 50
_SAMPLE_EVERY = 1000
# Over what they had before the first case. Threads of the front door keep arenas of a few MiB each.
_FRONT_MIB, _FRONT_PEAK_MIB, _WORKER_MIB, _WORKER_PEAK_MIB = 160.0, 256.0, 64.0, 96.0
_LIBRARY_TEXT = ("Traceback", 'File "', "0x", "std::", "Error(", "Exception", "numpy", "SEAL", "tenseal", "sqlite")


@cache
def _schedule() -> tuple[str, ...]:
    order = [name for name in GROUPS for _ in range(_SHARES.get(name, _OFTEN))]
    random.Random("schedule").shuffle(order)
    return tuple(order)


@cache
def _before() -> tuple[int, ...]:
    """For each place of the schedule, how many of its group come before it."""
    seen: Counter[str] = Counter()
    places = []
    for name in _schedule():
        places.append(seen[name])
        seen[name] += 1
    return tuple(places)


def place(index: int) -> tuple[str, int]:
    """The group of the case with this number, and how many of that group came before it."""
    rounds, at = divmod(index, len(_schedule()))
    name = _schedule()[at]
    return name, rounds * _SHARES.get(name, _OFTEN) + _before()[at]


@dataclass
class Report:
    """What a run came to. Memory is in MiB, times in seconds."""

    seed: int
    start: int
    cases: int = 0
    seconds: float = 0.0
    by_group: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    samples: list[tuple[int, int, int]] = field(default_factory=list)  # cases so far, front door, largest worker
    failures: list[dict[str, Any]] = field(default_factory=list)
    ok: bool = False

    def fail(self, what: str, index: int, **more: Any) -> None:
        if len(self.failures) < _MOST_FAILURES:
            again = f"--seed {self.seed} --start {index} --count 1" if index >= 0 else ""
            self.failures.append({"what": what, "again": again, **more})

    def took(self, seconds: float, group: str, case: Case) -> None:
        if seconds > self.slowest.get("seconds", 0.0):
            self.slowest = {"seconds": round(seconds, 3), "group": group, "case": case.name}


def play(
    world: World, seed: int, start: int, count: int, on_case: Callable[[int], None] = lambda index: None
) -> Report:
    """Play `count` cases from number `start` on; every expectation that does not hold becomes a failure of the report."""
    report = Report(seed, start)
    secrets = traces(world)
    forget_peaks((world.process.pid, *world.workers()))
    before, began = world.sizes(), time.monotonic()
    workers = world.workers()
    for index in range(start, start + count):
        _play_one(world, report, index, secrets)
        if world.workers() != workers:
            report.fail("a worker was lost", index)
            workers = world.workers()
        on_case(index)
        if report.cases % _SAMPLE_EVERY == 0:
            now = world.sizes()
            report.samples.append((report.cases, round(now.front), round(now.worker)))
        if index % _GOOD_EVERY == 0:
            _check_good(world, report, index)
    _check_good(world, report, start + count - 1)
    report.seconds = round(time.monotonic() - began, 1)
    _check_memory(report, before, world.sizes())
    _check_traces(world, report, secrets)
    report.ok = not report.failures
    return report


def _play_one(world: World, report: Report, index: int, secrets: list[bytes]) -> None:
    group, n = place(index)
    case = GROUPS[group](random.Random(f"{report.seed}:{index}"), n, world)
    began = time.monotonic()
    try:
        outcome = case.play(world)
    except Exception as error:  # a case that cannot be played is a failure, and no reason to stop
        outcome = Outcome("NOT PLAYED", type(error).__name__, repr(error))
    seconds = time.monotonic() - began
    report.cases += 1
    report.by_group[group] += 1
    report.answers[" ".join(outcome.answer).strip()] += 1
    report.took(seconds, group, case)
    about = {"group": group, "case": case.name, "got": outcome.answer, "message": outcome.message[:300]}
    if outcome.answer not in case.expected:
        report.fail("another answer", index, expected=case.expected, **about)
    if seconds > MOST_SECONDS:
        report.fail("too slow", index, seconds=round(seconds, 1), **about)
    for problem in _problems_of(outcome, secrets):
        report.fail(problem, index, **about)


def _problems_of(outcome: Outcome, secrets: list[bytes]) -> Iterator[str]:
    """What no answer may have. A status without a reason is gRPC's own, in its own words."""
    message = outcome.message
    if any(word in message for word in _LIBRARY_TEXT):
        yield "text of a library"
    if outcome.reason and not (message.startswith("cannot ") and message.isprintable() and len(message) <= 1000):
        yield "no message for a person"
    if any(piece in message.encode() for piece in secrets):
        yield "a secret in a message"


def _check_good(world: World, report: Report, index: int) -> None:
    try:
        world.check_good()
    except Exception as error:
        report.fail("a good request is not answered", index, message=repr(error)[:300])


def _check_memory(report: Report, before: Sizes, after: Sizes) -> None:
    report.memory = {"before": asdict(before), "after": asdict(after)}
    for name, more, most in (
        ("the front door", after.front - before.front, _FRONT_MIB),
        ("a worker", after.worker - before.worker, _WORKER_MIB),
        ("the front door at its peak", after.front_peak - before.front, _FRONT_PEAK_MIB),
        ("a worker at its peak", after.worker_peak - before.worker, _WORKER_PEAK_MIB),
    ):
        if more > most:
            report.fail(f"{name} grew by {more:.0f} MiB, more than {most:.0f}", -1)


def _check_traces(world: World, report: Report, secrets: list[bytes]) -> None:
    """Nothing of a payload in the log or the state, and nothing that went wrong inside."""
    log = world.log.read_bytes()
    for word in (b"Traceback", b'"incident"', b"worker lost"):
        if word in log:
            line = next(line for line in log.splitlines() if word in line)
            report.fail(f"{word.decode()} in the log", -1, message=line.decode(errors="replace")[:2000])
    if any(piece in log for piece in secrets):
        report.fail("a secret in the log", -1)
    for path in sorted((world.root / "state").rglob("*")):
        if path.is_file() and any(piece in path.read_bytes() for piece in secrets):
            report.fail(f"a secret in {path.relative_to(world.root)}", -1)
