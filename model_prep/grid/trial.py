"""Which division of a budget among the layers is best, by trying: a short training each.

What layers lose can be weighed against each other only roughly; a few hundred steps of training tell more.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..cores.masked import retrain
from ..cores.session import SimpleSession
from ..masks import Mask
from ..settings import Training
from ..stage import Stage
from .layer import Choice

__all__ = ["best_by_trial"]

_JUDGED = 4096  # training samples that a trial is judged by


def best_by_trial(
    stage: Stage, ends: Sequence[Mapping[str, Choice]], most: int, training: Training
) -> tuple[Mapping[str, Choice], list[float]]:
    """The end whose network is best after `training`, of the `most` that lose least; and the cross entropy of each tried.

    Networks are copies; the stage's stays as it is.
    """
    tried = sorted(ends, key=lambda end: sum(choice.lost for choice in end.values()))[:most]
    losses = [_loss_after(stage, end, training) for end in tried]
    return tried[int(np.argmin(losses))], losses


def _loss_after(stage: Stage, end: Mapping[str, Choice], training: Training) -> float:
    net = copy.deepcopy(stage.net)
    session = SimpleSession(net, stage.x, stage.y, stage.seed, stage.teacher)
    retrain(session, Mask({key: choice.keep for key, choice in end.items()}, "trial"), training, label="trial")
    net.eval()
    with torch.no_grad():
        logits = net(torch.from_numpy(stage.x[-_JUDGED:]))
    return float(F.cross_entropy(logits, torch.from_numpy(stage.y[-_JUDGED:])))
