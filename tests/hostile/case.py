"""A case: one hostile request, and the one answer that is right for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from protos.status import code_of
from tests.hostile.world import Outcome, World

__all__ = ["ACCEPTED", "BUSY", "HUGE", "U32", "U64", "Case", "Group", "bare", "nth", "refusal"]

Answer: TypeAlias = tuple[str, str]
T = TypeVar("T")

ACCEPTED: Answer = ("OK", "")
U32 = (0, 1 << 31, (1 << 32) - 1)
HUGE = (1 << 31, 1 << 40, 1 << 63, (1 << 64) - 1)
U64 = (0, 1, *HUGE)


def refusal(reason: str) -> Answer:
    """What the wire shows for a reason of the closed set."""
    return code_of(reason).name, reason


def bare(code: str) -> Answer:
    """A status that gRPC itself makes, before a byte reaches this project's code."""
    return code, ""


BUSY = bare("RESOURCE_EXHAUSTED")


@dataclass(frozen=True)
class Case:
    """`expected` has more than one answer only where two limits are reached by the same flood."""

    name: str
    expected: tuple[Answer, ...]
    play: Callable[[World], Outcome]

    @classmethod
    def of(cls, name: str, expected: Answer, play: Callable[[World], Outcome]) -> Case:
        return cls(name, (expected,), play)


# (generator of this case, how many of the group came before it, the world) -> the case
Group: TypeAlias = Callable[[random.Random, int, World], Case]


def nth(values: Sequence[T], n: int) -> T:
    """Walk through all of them, again and again."""
    return values[n % len(values)]
