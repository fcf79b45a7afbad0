"""2,000 hostile requests to a real server: each gets its right status at once, and nothing dies, grows or leaks."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.hostile.case import ACCEPTED, Case, refusal
from tests.hostile.corpus import GROUPS, place, play
from tests.hostile.world import Outcome, World, serving

CASES = 2000
SEED = 2026


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving(tmp_path_factory.mktemp("hostile")) as served:
        yield served


@pytest.mark.slow
def test_every_case_gets_its_right_status(world: World) -> None:
    report = play(world, SEED, 0, CASES)
    assert not report.failures, json.dumps(report.failures, indent=1)
    assert report.cases == CASES and set(report.by_group) == set(GROUPS)
    assert report.answers["INTERNAL INTERNAL"] == 0 and report.answers["OK"] < CASES / 5


def test_the_schedule_is_the_same_from_any_start() -> None:
    whole = [place(i) for i in range(3000)]
    assert [place(i) for i in range(1500, 1600)] == whole[1500:1600]
    seen: dict[str, int] = {}
    for name, n in whole:
        assert n == seen.get(name, 0)
        seen[name] = n + 1


def test_what_is_not_right_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong status, a library's words, a secret in a message and a lost worker each make a run fail."""
    side = world.sides["tiny"]
    leaked = side.smuggled["SEAL"].hex()
    made = [
        (Case.of("another answer", refusal("BYTES_MALFORMED"), lambda w: Outcome(*refusal("INTERNAL"))), "another"),
        (Case.of("a traceback", ACCEPTED, lambda w: Outcome("OK", message="Traceback")), "text of a library"),
        (Case.of("a secret", ACCEPTED, lambda w: Outcome("OK", message=leaked)), "a secret in a message"),
        (Case.of("an error", ACCEPTED, lambda w: w.call("/", w.sides["none"].request)), "another answer"),
    ]
    for case, what in made:
        monkeypatch.setattr("tests.hostile.corpus.GROUPS", {name: lambda r, n, w, c=case: c for name in GROUPS})
        report = play(world, SEED, 0, 1)
        assert not report.ok and any(failure["what"].startswith(what) for failure in report.failures), report
