"""What a structure is: a set of allowed masks, and the projection onto it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from he_runtime.errors import ModelError

from .layer import Bools, Floats, Ints, Layer

__all__ = [
    "Grouped",
    "Structure",
    "checked_energy",
    "group_energy",
    "group_norms",
    "keep_strongest",
    "kept_count",
]


class Structure(Protocol):
    """Which weights may be zero together."""

    @property
    def name(self) -> str:
        """What a mask's `structure` says."""
        ...

    def keep(self, layer: Layer, energy: Floats, density: float) -> Bools:
        """The allowed mask (the layer's shape, True stays) that keeps most of `energy` (same shape, not negative).

        Energy is the squared weight or any saliency that adds up. Of G groups max(1, round(density * G)) stay, unless
        the structure documents another count; ties fall to the lower index. Raises ModelError where the density is
        not in 0..1, the energy has another shape or is not finite, or the structure does not fit the layer.
        """
        ...


@runtime_checkable
class Grouped(Structure, Protocol):
    """A structure whose groups partition the weights."""

    def labels(self, layer: Layer) -> Ints:
        """The group of each weight, 0..G-1, in the layer's shape; no group is empty."""
        ...


def checked_energy(layer: Layer, energy: Floats, density: float) -> Floats:
    """`energy` in float64; ModelError where it or the density cannot be used (see `Structure.keep`)."""
    values = np.asarray(energy, dtype=np.float64)
    layer.matrix(values)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ModelError(
            f"cannot prune {layer.key!r}: got energies that are negative or not finite, need squared weights or "
            "another saliency of at least 0; try a smaller learning rate if training diverged"
        )
    if not 0 <= density <= 1:
        raise ModelError(f"cannot prune {layer.key!r}: got density {density:g}, need the kept share, in 0..1")
    return values


def kept_count(density: float, groups: int) -> int:
    """How many of `groups` stay: round(density * groups), and at least one."""
    return max(1, round(density * groups))


def group_energy(labels: Ints, energy: Floats) -> Floats:
    """(G,): the energy of each group; `labels` and `energy` have one shape."""
    return np.asarray(np.bincount(labels.ravel(), weights=energy.ravel()), dtype=np.float64)


def group_norms(labels: Ints, weights: Floats) -> Floats:
    """(G,): the l2 norm of each group's weights."""
    return np.asarray(np.sqrt(group_energy(labels, np.square(weights))), dtype=np.float64)


def keep_strongest(labels: Ints, energy: Floats, count: int) -> Bools:
    """True for the weights of the `count` groups with most energy; ties fall to the lower group."""
    sums = group_energy(labels, energy)
    chosen = np.zeros(len(sums), dtype=np.bool_)
    chosen[np.argsort(-sums, kind="stable")[:count]] = True
    return np.asarray(chosen[labels], dtype=np.bool_)
