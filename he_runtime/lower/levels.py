"""Levels: as few rescales as possible, as late as possible.

A linear layer whose result only feeds activations or products (or is the output) is not rescaled: the activation takes
the unrescaled value and one rescale by one prime brings the scale back (merged levels). A stage runs at the number of
rescales that still follow it, so that rotations meet as few primes as possible.
"""

from __future__ import annotations

from .stage_types import AddStage, JoinStage, LinearStage, Stage

__all__ = ["is_lazy", "readers_of", "stage_levels"]


def readers_of(stages: list[Stage], name: str) -> list[Stage]:
    return [s for s in stages if name in s.inputs]


def is_lazy(stages: list[Stage], name: str) -> bool:
    """Whether the value `name` may stay unrescaled: only activations, products, sums of that kind, or nobody reads it."""
    return all(
        is_lazy(stages, s.name) if isinstance(s, AddStage | JoinStage) else not isinstance(s, LinearStage)
        for s in readers_of(stages, name)
    )


def stage_levels(stages: list[Stage], base: int = 0, width: int = 1) -> dict[str, int]:
    """Stage name -> level at which its ops start (before its own rescales, if it has any); the output ends at `base`.

    Every rescale takes `width` primes.
    """
    below: dict[str, int] = {}  # level of the stage's result
    levels: dict[str, int] = {}
    for stage in reversed(stages):
        below[stage.name] = max((levels[s.name] for s in readers_of(stages, stage.name)), default=base)
        stays = isinstance(stage, LinearStage) and is_lazy(stages, stage.name)
        levels[stage.name] = below[stage.name] + (0 if stays else width * stage.rescales)
    return levels
