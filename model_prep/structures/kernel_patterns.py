"""Every kernel keeps one pattern of a library, and the weakest kernels nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from he_runtime.errors import ModelError

from .layer import Bools, Floats, Ints, Layer
from .library import PatternLibrary
from .structure import checked_energy, kept_count

__all__ = ["ASSIGNMENTS", "KernelPatterns"]

ASSIGNMENTS = ("kernel", "input_channel")
_ROUNDS = 10  # of choosing patterns for the kernels that stay and kernels for the patterns; two or three suffice


@dataclass(frozen=True)
class KernelPatterns:
    """Kernels of a convolution with patterns from `library` (Ma et al., ECCV 2020, arXiv 2001.07710).

    assignment "kernel" (the paper) picks each kernel's pattern alone; "input_channel" picks one pattern for all kernels
    that read a channel, so that the other taps of the channel need no rotation under encryption. `connectivity` is the
    share of a layer's kernels that stay; with `per_filter` every filter keeps equally many. 1x1 convolutions have no
    patterns, only connectivity; dense layers stay whole.
    """

    library: PatternLibrary
    assignment: str = "kernel"
    connectivity: float = 1.0
    per_filter: bool = False
    name: str = field(default="patterns", init=False)

    def __post_init__(self) -> None:
        if self.assignment not in ASSIGNMENTS or not 0 < self.connectivity <= 1:
            raise ModelError(
                f"cannot use patterns by {self.assignment!r} with connectivity {self.connectivity:g}: need one of "
                f"{ASSIGNMENTS} and a share above 0, at most 1"
            )

    def kernel_count(self, layer: Layer, density: float) -> int:
        """Kernels that stay: max(1, round(s * K)) of K, s = min(connectivity, density * taps / entries).

        So a density from entries/taps upwards prunes to patterns only. With `per_filter` the count is that of one
        filter times the filters. Each kernel that stays keeps as many weights as a pattern has entries.
        """
        if layer.op != "conv2d":
            return layer.shape[0] * layer.shape[1]
        patterns = self._patterns(layer)
        share = min(self.connectivity, density * patterns.shape[1] / int(patterns[0].sum()))
        if self.per_filter:
            return layer.shape[0] * kept_count(share, layer.shape[1])
        return kept_count(share, layer.shape[0] * layer.shape[1])

    def keep(self, layer: Layer, energy: Floats, density: float) -> Bools:
        """`kernel_count(layer, density)` kernels with their patterns; dense layers stay whole, whatever the density.

        Exact for assignment "kernel": the pattern of largest retained energy, then the kernels that retain most. For
        "input_channel" with fewer kernels, patterns and kernels are chosen in turn while that keeps more: a local optimum.
        """
        values = checked_energy(layer, energy, density)
        if layer.op != "conv2d":
            return np.ones(layer.shape, dtype=np.bool_)
        patterns, count = self._patterns(layer), self.kernel_count(layer, density)
        kernels = values.reshape(*layer.shape[:2], -1)
        retained = np.asarray(kernels @ patterns.T.astype(np.float64), dtype=np.float64)  # (out, in/groups, patterns)
        if self.assignment == "kernel":
            choice = np.argmax(retained, axis=2)
            alive = self._strongest(_picked(retained, choice), count)
        else:
            choice, alive = self._by_channel(retained, layer.input_channels(), count)
        return np.asarray(patterns[choice] & alive[:, :, None], dtype=np.bool_).reshape(layer.shape)

    def _patterns(self, layer: Layer) -> Bools:
        """(patterns, taps)."""
        height, width = layer.kernel
        if height * width == 1:
            return np.ones((1, 1), dtype=np.bool_)
        return self.library.of(layer.kernel).reshape(-1, height * width)

    def _by_channel(self, retained: Floats, channels: Ints, count: int) -> tuple[Ints, Bools]:
        """Patterns by channel and kernels in turn, from all kernels and from those that one pattern each would keep."""
        starts = np.ones(channels.shape, dtype=np.bool_), self._strongest(retained.max(axis=2), count)
        found = [self._alternate(retained, channels, count, alive) for alive in starts]
        return max(found, key=lambda one: one[0])[1:]

    def _alternate(self, retained: Floats, channels: Ints, count: int, alive: Bools) -> tuple[float, Ints, Bools]:
        best: tuple[float, Ints, Bools] | None = None
        for _ in range(_ROUNDS):
            sums = np.zeros((int(channels.max()) + 1, retained.shape[2]))
            np.add.at(sums, channels.ravel(), np.where(alive[:, :, None], retained, 0.0).reshape(channels.size, -1))
            choice = np.argmax(sums, axis=1)[channels]
            picked = _picked(retained, choice)
            alive = self._strongest(picked, count)
            weight = float(picked[alive].sum())
            if best is not None and weight <= best[0]:
                break
            best = weight, choice, alive
        assert best is not None  # the first round always counts
        return best

    def _strongest(self, energy: Floats, count: int) -> Bools:
        """(out, in/groups): the `count` kernels of most energy, in all or equally many in each filter."""
        rows = energy if self.per_filter else energy.reshape(1, -1)
        alive = np.zeros(rows.shape, dtype=np.bool_)
        order = np.argsort(-rows, axis=1, kind="stable")[:, : count // len(rows)]
        np.put_along_axis(alive, order, True, axis=1)
        return alive.reshape(energy.shape)


def _picked(retained: Floats, choice: Ints) -> Floats:
    """(out, in/groups): what each kernel keeps with its pattern."""
    return np.take_along_axis(retained, choice[:, :, None], axis=2)[:, :, 0]
