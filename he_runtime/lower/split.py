"""Baby-step giant-step split of a sparse set of diagonals: every modulus, several offsets.

Each diagonal d becomes a + b with baby a = (d + t) mod mu and giant b the rest. What is paid for is the number of
distinct non-zero babies per input ciphertext plus distinct non-zero giants per output ciphertext, not the number of
diagonals, so for sparse or strided sets moduli that are no power of two win.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Split", "best_split"]

Ints = npt.NDArray[np.int64]
_REFINED = 16  # moduli that get the fine grid of offsets
_OFFSETS = 16  # points of that grid


@dataclass(frozen=True)
class Split:
    """baby[k] + giant[k] = diagonal[k] (mod `modulus`), all in [0, modulus); `rotations` is what the pair costs."""

    baby: Ints
    giant: Ints
    rotations: int
    steps: int  # distinct rotation amounts, hence Galois keys


def best_split(diagonals: Ints, inputs: Ints, outputs: Ints, modulus: int) -> Split:
    """The split with the fewest rotations, then the fewest distinct steps.

    `diagonals`, `inputs` and `outputs` are parallel: the diagonal (mod `modulus`) of each cell and the input and
    output ciphertext that it joins. Cost: O(modulus * cells).
    """
    search = _Search(diagonals, inputs, outputs, modulus)
    rough = sorted((search.rotations(mu, t), mu, t) for mu, t in search.coarse())
    fine = {(mu, int(t)) for _, mu, _ in rough[:_REFINED] for t in search.offsets(mu)}
    ranked = sorted({(search.rotations(mu, t), mu, t) for mu, t in fine} | set(rough[:_REFINED]))
    least = ranked[0][0]
    candidates = [search.split(mu, t) for rotations, mu, t in ranked[: 4 * _REFINED] if rotations <= least + 1]
    return min(candidates, key=lambda s: (s.rotations, s.steps))


class _Search:
    def __init__(self, diagonals: Ints, inputs: Ints, outputs: Ints, modulus: int) -> None:
        self.diagonals = diagonals.astype(np.int64)
        self.modulus = modulus
        self.inputs, self.outputs = inputs.astype(np.int64), outputs.astype(np.int64)
        self.input_count = int(inputs.max()) + 1
        self.output_count = int(outputs.max()) + 1

    def coarse(self) -> Iterable[tuple[int, int]]:
        """Every modulus, with diagonals read as 0..M-1 and as -M/2..M/2-1 (convolution taps lie around zero)."""
        # Beyond M, every modulus is the same split: all babies, no giants.
        return ((mu, t) for mu in range(1, self.modulus + 1) for t in {0, self.modulus // 2})

    def offsets(self, mu: int) -> Ints:
        grid = np.unique(np.linspace(0, mu, _OFFSETS, endpoint=False, dtype=np.int64))
        return np.concatenate([grid, (self.modulus // 2 + grid) % self.modulus])

    def rotations(self, mu: int, offset: int) -> int:
        """Distinct non-zero babies per input plus giants per output (before the shift that may save one more)."""
        shifted = (self.diagonals + offset) % self.modulus
        high = shifted // mu
        low = shifted - high * mu
        babies = np.zeros((self.input_count, mu), dtype=bool)
        babies[self.inputs, low] = True
        giants = np.zeros((self.output_count, self.modulus // mu + 1), dtype=bool)
        giants[self.outputs, high] = True
        zero_low, zero_high = offset % mu, offset // mu
        free = np.count_nonzero(babies[:, zero_low]) + np.count_nonzero(giants[:, zero_high])
        return int(np.count_nonzero(babies) + np.count_nonzero(giants) - free)

    def split(self, mu: int, offset: int) -> Split:
        shifted = (self.diagonals + offset) % self.modulus
        low = shifted % mu
        high = shifted - low
        shifts = {offset % mu, int(low[0])}  # moving all babies by x and all giants back costs nothing
        return min(
            (self._moved(low - x, high + x - offset) for x in sorted(shifts)), key=lambda s: (s.rotations, s.steps)
        )

    def _moved(self, baby: Ints, giant: Ints) -> Split:
        baby, giant = baby % self.modulus, giant % self.modulus
        pairs_in = {(int(j), int(a)) for j, a in zip(self.inputs, baby, strict=True) if a}
        pairs_out = {(int(i), int(b)) for i, b in zip(self.outputs, giant, strict=True) if b}
        steps = {a for _, a in pairs_in} | {b for _, b in pairs_out}
        return Split(baby, giant, len(pairs_in) + len(pairs_out), len(steps))
