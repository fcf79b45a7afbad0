"""Levels: as few rescales as possible, as late as possible.

A linear layer whose result only feeds activations (or is the output) is not rescaled: the activation squares the
unrescaled value and one rescale by one prime brings the scale back (merged levels). A stage runs at the number of
rescales that still follow it, so that rotations meet as few primes as possible.
"""

from __future__ import annotations

from .stages import AddStage, LinearStage, QuadraticStage, Stage

__all__ = ["is_lazy", "stage_levels"]


def _readers(stages: list[Stage], name: str) -> list[Stage]:
    return [s for s in stages if name in s.inputs]


def is_lazy(stages: list[Stage], name: str) -> bool:
    """Whether the value `name` may stay unrescaled: nothing but activations, additions of that kind, or nobody reads it."""
    return all(
        isinstance(s, QuadraticStage) or (isinstance(s, AddStage) and is_lazy(stages, s.name))
        for s in _readers(stages, name)
    )


def stage_levels(stages: list[Stage]) -> dict[str, int]:
    """Stage name -> level at which its ops run (before its own rescale, if it has one)."""
    below: dict[str, int] = {}  # level of the stage's result
    levels: dict[str, int] = {}
    for stage in reversed(stages):
        below[stage.name] = max((levels[s.name] for s in _readers(stages, stage.name)), default=0)
        rescales = isinstance(stage, QuadraticStage) or (
            isinstance(stage, LinearStage) and not is_lazy(stages, stage.name)
        )
        levels[stage.name] = below[stage.name] + int(rescales)
    return levels
