"""Masks: which weights stay, by array name, with the structure that the planner reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from he_runtime.errors import ModelError

__all__ = ["Bools", "Mask", "magnitude_mask"]

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Mask:
    """`keep[name]` is True where a weight stays. `structure` names the pattern, `parameters` how it was chosen."""

    keep: Mapping[str, Bools]
    structure: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nonzeros(self) -> int:
        return sum(int(k.sum()) for k in self.keep.values())

    @property
    def density(self) -> float:
        return self.nonzeros / max(1, sum(k.size for k in self.keep.values()))

    def collapsed(self) -> list[str]:
        """Arrays with no weight left: the network can no longer see its input through them."""
        return [name for name, k in self.keep.items() if not k.any()]

    def multiply_add_density(self, positions: Mapping[str, int]) -> float:
        """Kept share of multiply-adds, each weight counted once per output position of its layer."""
        total = sum(k.size * positions[name] for name, k in self.keep.items())
        return sum(int(k.sum()) * positions[name] for name, k in self.keep.items()) / max(1, total)

    def report(self, positions: Mapping[str, int]) -> dict[str, Any]:
        """What a model's metadata says of its pruning; `positions` as for `multiply_add_density`."""
        return {
            "structure": self.structure,
            "density": self.density,
            "nonzeros": self.nonzeros,
            "multiply_add_density": self.multiply_add_density(positions),
            "parameters": dict(self.parameters),
        }


def magnitude_mask(weights: Mapping[str, npt.NDArray[Any]], density: float, minimum: float = 0.0005) -> Mask:
    """Global magnitude pruning with a minimum threshold (Gupta et al., arXiv 2209.14624).

    Exactly round(density * N) of all N weights stay. Every layer keeps at least min(int(minimum * N), its size); the
    rest follows the global ranking: keep_l = max(floor_l, c * global_l) with c found by bisection. Ties fall to the
    lower index, in the order of `weights`.

    Raises ModelError where the minima alone exceed the budget.
    """
    sizes = np.array([w.size for w in weights.values()])
    budget = round(density * int(sizes.sum()))
    floors = np.minimum(int(minimum * int(sizes.sum())), sizes)
    if floors.sum() > budget:
        raise ModelError(
            f"cannot prune to density {density:g}: the minimum of {floors.max()} weights per layer needs "
            f"{floors.sum()} weights and only {budget} may stay; try a higher density or a lower minimum"
        )
    wanted = _global_counts([np.abs(w).ravel() for w in weights.values()], budget)
    counts = _with_floors(wanted, floors, sizes, budget)
    keep = {name: _largest(np.abs(w), int(count)) for (name, w), count in zip(weights.items(), counts, strict=True)}
    return Mask(keep, "unstructured", {"method": "global magnitude", "density": density, "minimum": minimum})


def _global_counts(magnitudes: list[npt.NDArray[Any]], budget: int) -> npt.NDArray[np.int64]:
    """How many of the `budget` largest values fall into each layer."""
    pool = np.concatenate(magnitudes)
    chosen = np.argsort(-pool, kind="stable")[:budget]
    bounds = np.cumsum([0, *(m.size for m in magnitudes)])
    return np.asarray(np.histogram(chosen, bins=bounds)[0], dtype=np.int64)


def _with_floors(
    wanted: npt.NDArray[np.int64], floors: npt.NDArray[Any], sizes: npt.NDArray[Any], budget: int
) -> npt.NDArray[np.int64]:
    """Integers max(floor, c * wanted) that sum to the budget exactly; a rounding remainder goes to the largest fractions."""
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if np.maximum(floors, middle * wanted).sum() > budget:
            high = middle
        else:
            low = middle
    exact = np.maximum(floors, low * wanted)
    counts = np.minimum(np.floor(exact), sizes).astype(np.int64)
    room = sizes - counts
    order = np.argsort(-(exact - counts) * (room > 0), kind="stable")
    missing = budget - int(counts.sum())
    while missing > 0:
        for index in order:
            if missing and room[index]:
                counts[index] += 1
                room[index] -= 1
                missing -= 1
    return np.asarray(counts, dtype=np.int64)


def _largest(values: npt.NDArray[Any], count: int) -> Bools:
    keep = np.zeros(values.size, dtype=np.bool_)
    keep[np.argsort(-values.ravel(), kind="stable")[:count]] = True
    return keep.reshape(values.shape)
