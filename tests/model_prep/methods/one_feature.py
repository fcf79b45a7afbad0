"""One feature per ciphertext on the tenseal back end: its counters in closed form, and a model run under encryption."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from he_runtime import Plan, compile
from he_runtime.cost import load_default
from he_runtime.model import CompressedModel
from he_runtime.plan.counts import leaf_totals
from tests.model_prep.methods.encrypted import encrypted_outputs

__all__ = ["Run", "run", "tap_positions", "uses"]

DEGREE = 8192


def tap_positions(size: int, kernel: int, stride: int, padding: int) -> npt.NDArray[np.int64]:
    """(kernel,): at how many output positions along one axis a tap reads a pixel and not the border's zeros."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    read = np.arange(outputs)[:, None] * stride - padding + np.arange(kernel)
    return np.asarray(((read >= 0) & (read < size)).sum(0))


def uses(chosen: npt.NDArray[np.bool_], size: int = 0, stride: int = 1, padding: int = 0) -> int:
    """How often the chosen weights of a layer meet a feature: at every output position but those where they read borders.

    `size` is the side of the square image that a convolution reads; 0 for a dense layer.
    """
    if not size:
        return int(chosen.sum())
    axis = tap_positions(size, chosen.shape[-1], stride, padding)
    return int((chosen * axis[:, None] * axis).sum())


@dataclass(frozen=True)
class Run:
    """Decrypted logits (n, classes), what the executor counted (as planned), by leaf, and the plan."""

    logits: npt.NDArray[np.float64]
    totals: dict[str, int]
    plan: Plan


def run(model: CompressedModel, images: npt.NDArray[np.float64]) -> Run:
    """All images in one encrypted run with as many samples as slots; its counters must be the planned ones."""
    table = load_default("tenseal")
    # The default share of the margin lets a few images of a hundred change class; a fifth of it lets none.
    plan = compile(model, degrees=(DEGREE,), batch=DEGREE // 2, table=table, margin_share=0.05)
    return Run(encrypted_outputs(plan, images), leaf_totals(plan.counts), plan)
