"""Masked retraining, and sparsity that rises along the cubic schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..masks import Bools, Mask
from ..settings import Training
from .session import Penalty, Session, core_hooks, masks_of, need, set_masks, zero_masked

__all__ = ["gradual", "reached_share", "retrain"]


def retrain(
    session: Session, mask: Mask, training: Training, *, label: str = "retraining", penalty: Penalty | None = None
) -> None:
    """Train what a mask keeps. What it cuts, and what was masked before, is exactly zero from here on.

    `penalty` is added to the loss at every step. Raises ModelError where the mask does not fit the network, Diverged
    where training does.
    """
    _mask_further(session, mask, masks_of(session.net))
    zero_masked(session.net)
    session.fit(training, label, core_hooks(session.net, [penalty]))


def reached_share(progress: float, ramp: float) -> float:
    """1 - (1 - t)^3 with t rising from 0 to 1 over the part `ramp` of training: how much of the final sparsity is due.

    The density of the moment is 1 - (1 - final density) * share (Gupta et al., arXiv 2209.14624, section 4).
    """
    t = 1.0 if progress >= ramp else progress / ramp
    return 1.0 - (1.0 - t) ** 3


def gradual(
    session: Session,
    choose: Callable[[float], Mask],
    training: Training,
    ramp: float,
    *,
    label: str = "pruning",
    penalty: Penalty | None = None,
) -> Mask:
    """Raise sparsity over the part `ramp` of one training run, then freeze the mask and retrain.

    `choose(share)` gives the mask at a share in [0, 1] of the final sparsity, from the weights as they are at that
    moment. It is asked before each epoch; until the ramp ends, cut weights live on under the mask (dense shadow
    weights: their gradient is zero, but they may return). The last mask (`choose(1)`) is cut for good. Masks that the
    network had before stay cut throughout. Returns the final mask (Gupta et al., arXiv 2209.14624, section 4).

    Raises ModelError where a mask does not fit or `ramp` is outside [0, 1], Diverged where training does.
    """
    need(0 <= ramp <= 1, "a gradual schedule", f"ramp {ramp:g}", "a part of training in [0, 1]")
    net, before = session.net, masks_of(session.net)
    final: list[Mask] = []

    def rank(progress: float) -> None:
        if not final:
            mask = _mask_further(session, choose(reached_share(progress, ramp)), before)
            if progress >= ramp:
                final.append(mask)

    def cut() -> None:
        if final:
            zero_masked(net)

    session.fit(training, label, replace(core_hooks(net, [penalty], then=cut), before_epoch=rank))
    rank(1.0)
    cut()
    return final[0]


def _mask_further(session: Session, mask: Mask, before: dict[str, Bools]) -> Mask:
    """Set a mask without what was cut before; returns it."""
    keep = {key: value & before[key] if key in before else value for key, value in mask.keep.items()}
    set_masks(session.net, keep)
    return replace(mask, keep=keep)
