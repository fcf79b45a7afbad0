"""A session on plain arrays, for tests of the cores without a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import nn

from model_prep.settings import Training
from model_prep.train import Hooks, fit
from model_prep.trainable import TrainableGraph

__all__ = ["SimpleSession"]


@dataclass
class SimpleSession:
    """A session on arrays: normalized inputs `x` (n, *shape), labels `y` (n,), a teacher where there is one.

    Each run draws its batches in an order of its own, the same for the same `seed`.
    """

    net: TrainableGraph
    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    seed: int = 0
    teacher: nn.Module | None = None
    quiet: bool = True
    runs: int = field(default=0, init=False)

    def fit(self, training: Training, label: str, hooks: Hooks | None = None) -> None:
        seed, self.runs = self.seed + self.runs, self.runs + 1
        options = {"teacher": self.teacher, "hooks": hooks, "label": label, "quiet": self.quiet}
        fit(self.net, self.x, self.y, training, seed=seed, **options)  # type: ignore[arg-type]
