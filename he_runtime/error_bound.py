"""What a plan states of its error: the predicted sigma, and a bound, from the variance in every slot of the output.

Noise is close to Gaussian once sample, output and key are fixed; over samples it is not, since errors grow with the values
they ride on. The bound is therefore the larger of two: six sigmas of the noisiest output, sigma taken over all samples, and the
error that one output in a hundred thousand exceeds, followed sample by sample. Where samples are alike the first is the
larger; where a few err several times as much as the rest, the second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .plan import Plan

__all__ = ["SlotErrors", "quietest"]

Slots = npt.NDArray[np.float64]
SIGMAS = 6.0
EXCEEDED = 1e-5  # the share of outputs whose error may be larger than the bound
_HALVINGS = 40


@dataclass(frozen=True)
class SlotErrors:
    """Predicted error variances of the first output port's slots.

    `single` is that of single samples, (ciphertexts, samples, lane groups), the mean over a group's lanes; `peaks` how many times
    that the noisiest lane of a batch has, (ciphertexts, lane groups), None where all are alike.
    """

    single: Slots
    peaks: Slots | None = None

    @cached_property
    def mean(self) -> Slots:
        """(ciphertexts, lane groups): the mean over samples, widened by the standard error that so few samples leave it."""
        mean, samples = self.single.mean(axis=1), self.single.shape[1]
        if samples < 2:
            return np.asarray(mean)
        totals = self.single.mean(axis=2)
        spread = totals.std(axis=1, ddof=1) / np.sqrt(samples) / np.maximum(totals.mean(axis=1), 1e-300)
        return np.asarray(mean * (1 + spread[:, None]))

    def bound(self, read: npt.NDArray[np.bool_]) -> float:
        """On the error of the slots that the client reads, (ciphertexts, lane groups), in their noisiest lanes."""
        peaks = np.ones(self.mean.shape) if self.peaks is None else self.peaks
        overall = SIGMAS * float(np.sqrt((self.mean * peaks)[read].max()))
        sigmas = np.sqrt(self.single * peaks[:, None]).transpose(0, 2, 1)[read]
        return max(overall, _exceeded(sigmas.ravel()))


def _exceeded(sigmas: Slots) -> float:
    """What errors of these standard deviations, all as frequent, exceed with probability EXCEEDED, by bisection."""
    low, high = 0.0, SIGMAS * float(sigmas.max())
    if high == 0.0:
        return 0.0
    # Here, since importing it would double the time that importing the runtime takes.
    from scipy.special import erfc

    scaled = np.sqrt(2.0) * np.maximum(sigmas, high * 1e-12)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if erfc(middle / scaled).mean() > EXCEEDED else (low, middle)
    return high


def quietest(plan: Plan, errors: SlotErrors) -> Plan:
    """Let the client read every output element at its least noisy replica, and record sigma and bound.

    Key switching leaves a hundred times the usual error in the few slots whose root lies next to 1, slot 0 among them.
    """
    port = plan.outputs[0]
    slot_map, variance = port.slot_map.ravel(), errors.mean.ravel()
    order = np.argsort(variance, kind="stable")
    order = order[slot_map[order] >= 0]
    elements, first = np.unique(slot_map[order], return_index=True)
    chosen = np.full_like(slot_map, -1)
    chosen[order[first]] = elements
    read = replace(port, slot_map=chosen.reshape(port.slot_map.shape))
    sigma = float(np.sqrt(variance[order[first]].mean()))
    return replace(plan, sigma=sigma, error_bound=errors.bound(read.slot_map >= 0), outputs=(read,))
