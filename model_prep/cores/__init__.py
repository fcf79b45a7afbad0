"""The shared optimisers of compression, each written once, on any structure (methods.md, section 0.4).

session     what they work on: a network and its training, one run at a time
masked      retraining under a mask, and sparsity that rises along a schedule
admm        training towards any set that has a projection
reweighted  training groups towards zero, counted rather than shrunk
quantized   training with rounded weights and activations
settled     weights onto levels, a growing share at a time
"""

from __future__ import annotations

from .admm import Admm, AdmmReport, Split, SplitState, admm, on_support
from .masked import gradual, reached_share, retrain
from .quantized import ActivationObserver, ActivationRange, Qat, QatReport, harden, qat, straight_through_of
from .reweighted import Grouping, Reweighted, ReweightedReport, group_norms, reweighted
from .session import Session, SimpleSession, set_masks, weights
from .settled import Settle, settle

__all__ = [
    "ActivationObserver",
    "ActivationRange",
    "Admm",
    "AdmmReport",
    "Grouping",
    "Qat",
    "QatReport",
    "Reweighted",
    "ReweightedReport",
    "Session",
    "Settle",
    "SimpleSession",
    "Split",
    "SplitState",
    "admm",
    "gradual",
    "group_norms",
    "harden",
    "on_support",
    "qat",
    "reached_share",
    "retrain",
    "reweighted",
    "set_masks",
    "settle",
    "straight_through_of",
    "weights",
]
