"""Who watches a compression: told of every step as it begins and ends, and may put an interrupted one back on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .methods import Method
    from .recipe import Recipe
    from .stage import Stage

__all__ = ["TEACHER", "Watcher"]

TEACHER = "teacher"  # step number 0 of every compression


class Watcher:
    """Does nothing; override what is wanted. Step 0 is the training of the teacher, the recipe's steps count from 1."""

    def restore(self, stage: Stage, recipe: Recipe, steps: Sequence[Method]) -> int | None:
        """Called once, with the network untrained: put `stage` where an earlier run left it.

        Returns the number of the last step that is done, or None for a start from nothing.
        """
        return None

    def begins(self, name: str, number: int, total: int) -> None:
        """A step is about to run."""

    def done(self, name: str, number: int, total: int, stage: Stage) -> None:
        """A step ended, and was measured."""
