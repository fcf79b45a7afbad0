"""Baby-step giant-step split of a sparse set of diagonals: every modulus, several offsets.

Each diagonal d becomes a + b with baby a = (d + t) mod mu and giant b the rest. What is paid for is the number of
distinct non-zero babies per input ciphertext plus distinct non-zero giants per output ciphertext, not the number of
diagonals, so for sparse or strided sets moduli that are no power of two win. Where babies are hoisted a giant costs several
of them, which is its weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Split", "best_split"]

Ints = npt.NDArray[np.int64]
_REFINED = 16  # moduli that get the fine grid of offsets
_OFFSETS = 16  # points of that grid
_FEW = 96  # diagonals of one block that Python counts faster than NumPy


@dataclass(frozen=True)
class Split:
    """baby[k] + giant[k] = diagonal[k] (mod `modulus`), all in [0, modulus).

    `babies` counts distinct pairs of an input and a non-zero baby step, `turned` the inputs that have one, `giants`
    distinct pairs of an output and a non-zero giant step.
    """

    baby: Ints
    giant: Ints
    babies: int
    giants: int
    turned: int
    steps: frozenset[int]  # distinct rotation amounts, hence Galois keys

    @property
    def rotations(self) -> int:
        return self.babies + self.giants

    def cost(self, weight: float) -> float:
        return self.babies + weight * self.giants


def best_split(
    diagonals: Ints,
    inputs: Ints,
    outputs: Ints,
    modulus: int,
    known: frozenset[int] = frozenset(),
    weight: float = 1.0,
) -> Split:
    """The split with the cheapest rotations, then the fewest steps that are not `known`: those have a Galois key anyway.

    A giant step costs `weight` baby steps, at least 1.
    `diagonals`, `inputs` and `outputs` are parallel: the diagonal (mod `modulus`) of each cell and the input and
    output ciphertext that it joins. Every modulus is considered; one is counted out, O(cells), only while its lower
    bound allows it to win.
    """
    if not diagonals.any():  # nothing turns; or every weight is zero, and nothing is there
        return Split(diagonals, diagonals, 0, 0, 0, frozenset())
    search = _Search(diagonals, inputs, outputs, modulus, known, weight)
    rough = sorted(search.coarse())
    fine = {(mu, int(t)) for _, mu, _ in rough[:_REFINED] for t in search.offsets(mu)}
    ranked = sorted({(search.cost(mu, t), mu, t) for mu, t in fine} | set(rough[:_REFINED]))
    least = ranked[0][0]
    candidates = [search.split(mu, t) for cost, mu, t in ranked[: 4 * _REFINED] if cost <= least + weight]
    return min(candidates, key=lambda s: (s.cost(weight), len(s.steps - known), len(s.steps)))


class _Search:
    def __init__(
        self, diagonals: Ints, inputs: Ints, outputs: Ints, modulus: int, known: frozenset[int], weight: float
    ) -> None:
        self.known, self.weight = known, weight
        self.diagonals = diagonals.astype(np.int64)
        self.modulus = modulus
        self.inputs, self.outputs = inputs.astype(np.int64), outputs.astype(np.int64)
        self.input_count = int(inputs.max()) + 1
        self.output_count = int(outputs.max()) + 1
        single = self.input_count == self.output_count == 1
        self._few = self.diagonals.tolist() if single and len(diagonals) <= _FEW else None

    def coarse(self) -> list[tuple[float, int, int]]:
        """(cost, modulus, offset) with diagonals read as 0..M-1 and as -M/2..M/2-1 (taps lie around zero).

        Beyond M, every modulus is the same split: all babies, no giants. Moduli come in the order of their lower
        bounds; the rest is left out once the bound exceeds what the best _REFINED moduli reach.
        """
        bounds = self._lower_bounds()
        found: list[tuple[float, int, int]] = []
        worst = float("inf")
        for index in np.argsort(bounds, kind="stable"):
            if bounds[index] > worst:
                break
            mu = int(index) + 1
            found += [(self.cost(mu, t), mu, t) for t in {0, self.modulus // 2}]
            if len(found) % (8 * _REFINED) == 0:
                worst = sorted(found)[_REFINED - 1][0]
        return found

    def _lower_bounds(self) -> npt.NDArray[np.float64]:
        """Least cost of rotations that each modulus 1..M allows, for any offset.

        With G = ceil(M / mu) possible giants, n diagonals of a block need at least n / G babies and n / mu giants;
        one baby per input and one giant per output may be zero, hence free.
        """
        blocks = np.zeros((self.output_count, self.input_count), dtype=np.int64)
        np.add.at(blocks, (self.outputs, self.inputs), 1)
        mu = np.arange(1, self.modulus + 1)
        babies = np.ceil(blocks.max(axis=0)[:, None] / -(-self.modulus // mu))
        giants = np.ceil(blocks.max(axis=1)[:, None] / mu)
        return np.asarray(np.maximum(babies - 1, 0).sum(axis=0) + self.weight * np.maximum(giants - 1, 0).sum(axis=0))

    def offsets(self, mu: int) -> Ints:
        grid = np.unique(np.linspace(0, mu, _OFFSETS, endpoint=False, dtype=np.int64))
        return np.concatenate([grid, (self.modulus // 2 + grid) % self.modulus])

    def cost(self, mu: int, offset: int) -> float:
        """Distinct non-zero babies per input plus giants per output (before the shift that may save one more)."""
        if self._few is not None:
            pairs = [divmod((d + offset) % self.modulus, mu) for d in self._few]
            giants_set, babies_set = {high for high, _ in pairs}, {low for _, low in pairs}
            return self.weight * len(giants_set - {offset // mu}) + len(babies_set - {offset % mu})
        shifted = (self.diagonals + offset) % self.modulus
        high = shifted // mu
        low = shifted - high * mu
        babies = np.zeros((self.input_count, mu), dtype=bool)
        babies[self.inputs, low] = True
        giants = np.zeros((self.output_count, self.modulus // mu + 1), dtype=bool)
        giants[self.outputs, high] = True
        zero_low, zero_high = offset % mu, offset // mu
        paid_babies = np.count_nonzero(babies) - np.count_nonzero(babies[:, zero_low])
        return float(paid_babies + self.weight * (np.count_nonzero(giants) - np.count_nonzero(giants[:, zero_high])))

    def split(self, mu: int, offset: int) -> Split:
        shifted = (self.diagonals + offset) % self.modulus
        low = shifted % mu
        high = shifted - low
        shifts = {offset % mu, int(low[0])}  # moving all babies by x and all giants back costs nothing
        return min(
            (self._moved(low - x, high + x - offset) for x in sorted(shifts)),
            key=lambda s: (s.cost(self.weight), len(s.steps - self.known)),
        )

    def _moved(self, baby: Ints, giant: Ints) -> Split:
        baby, giant = baby % self.modulus, giant % self.modulus
        pairs_in = self._distinct(self.inputs, self.input_count, baby)
        pairs_out = self._distinct(self.outputs, self.output_count, giant)
        steps = frozenset((pairs_in % self.modulus).tolist()) | frozenset((pairs_out % self.modulus).tolist())
        turned = len(np.unique(pairs_in // self.modulus))
        return Split(baby, giant, len(pairs_in), len(pairs_out), turned, steps)

    def _distinct(self, ciphertexts: Ints, count: int, steps: Ints) -> Ints:
        """Distinct pairs of a ciphertext and a non-zero step, as ciphertext * modulus + step."""
        seen = np.zeros((count, self.modulus), dtype=bool)
        seen[ciphertexts, steps] = True
        seen[:, 0] = False
        return np.flatnonzero(seen)
