"""Reordering hidden channels so that a structured mask keeps more: the function of the network stays the same.

Channels of a tensor inside the network have no fixed order: permuting the rows of the layer before it and the columns of
the layer after it alike changes nothing but which diagonals the weights lie on. Alternating assignment: given masks,
place the channels best (Hungarian method); given the places, choose masks again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from he_runtime.model import CompressedModel, Node

from ..graph import LINEAR_OPS
from ..masks import Bools
from ..packing.diagonals import Ints

__all__ = ["Reordering", "permuted", "reordering"]

Floats = npt.NDArray[np.float64]
Masks = Callable[[Mapping[str, Floats]], Mapping[str, Bools]]
_ROUNDS = 6
_PER_CHANNEL = ("quadratic", "affine")


@dataclass(frozen=True)
class _Hidden:
    """A tensor whose `channels` may trade places: arrays indexed by them in the first axis, and one in the second."""

    channels: int
    rows: tuple[str, ...]
    columns: str

    def moved(self, arrays: dict[str, npt.NDArray[Any]], order: Ints) -> None:
        """Put channel order[p] at place p, in the arrays that are there."""
        for key in self.rows:
            if key in arrays:
                arrays[key] = arrays[key].reshape(self.channels, -1)[order].reshape(arrays[key].shape)
        if self.columns not in arrays:
            return
        weight = arrays[self.columns]
        arrays[self.columns] = weight.reshape(len(weight), self.channels, -1)[:, order].reshape(weight.shape)


@dataclass(frozen=True)
class Reordering:
    """Hidden tensors and the new order of their channels, one after the other."""

    moves: tuple[tuple[_Hidden, Ints], ...]

    def applied(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The arrays (any that are indexed like the model's) in the new order."""
        moved = dict(arrays)
        for tensor, order in self.moves:
            tensor.moved(moved, order)
        return moved


def reordering(model: CompressedModel, energy: Mapping[str, Floats], masks: Masks) -> Reordering:
    """The order of hidden channels that lets `masks(energies)` keep the most energy.

    `energy` holds the saliency of each weight by array (a squared weight, or better) and `masks` maps it, as the weights
    would then lie, to the places that may stay. Only tensors between two layers with nothing but activations, pools and
    reshapes between them are permuted, and only where `energy` lists both layers.
    """
    hidden = [x for x in _hidden_tensors(model) if {x.rows[0], x.columns} <= energy.keys()]
    if not hidden:
        return Reordering(())
    energy = dict(energy)
    moves: list[tuple[_Hidden, Ints]] = []
    best, count = _kept(energy, masks(energy)), 0
    for _ in range(_ROUNDS):
        keep = masks(energy)
        for tensor in hidden:
            order = _best_order(tensor, energy, keep)
            tensor.moved(energy, order)
            moves.append((tensor, order))
        found = _kept(energy, masks(energy))
        if found <= best:
            break
        best, count = found, len(moves)
    return Reordering(tuple(moves[:count]))


def permuted(model: CompressedModel, masks: Masks) -> CompressedModel:
    """The same function with hidden channels in the order that lets `masks(squared weights)` keep the most."""
    keys = [n.arrays["weight"] for n in model.nodes if n.op in LINEAR_OPS]
    energy = {key: np.asarray(model.arrays[key], dtype=np.float64) ** 2 for key in keys}
    return model.with_(arrays=reordering(model, energy, masks).applied(model.arrays))


def _kept(energy: Mapping[str, Floats], keep: Mapping[str, Bools]) -> float:
    """Mean over arrays of the share of energy that stays: layers count alike, whatever their scale."""
    return float(np.mean([energy[key][keep[key]].sum() / max(float(energy[key].sum()), 1e-300) for key in energy]))


def _best_order(tensor: _Hidden, energy: Mapping[str, Floats], keep: Mapping[str, Bools]) -> Ints:
    producer, consumer = tensor.rows[0], tensor.columns
    rows, places = (x[producer].reshape(tensor.channels, -1) for x in (energy, keep))
    gain = rows @ places.T / max(float(rows.sum()), 1e-300)

    def by_channel(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return values.reshape(len(values), tensor.channels, -1).swapaxes(0, 1).reshape(tensor.channels, -1)

    columns = by_channel(energy[consumer])
    gain = gain + columns @ by_channel(keep[consumer]).T / max(float(columns.sum()), 1e-300)
    channel, place = linear_sum_assignment(gain, maximize=True)
    order = np.empty(tensor.channels, dtype=np.int64)
    order[place] = channel
    return order


def _hidden_tensors(model: CompressedModel) -> list[_Hidden]:
    uses = Counter(key for node in model.nodes for key in node.arrays.values())
    found = [_follow(model, node) for node in model.nodes if node.op in LINEAR_OPS and _ungrouped(node)]
    return [x for x in found if x is not None and all(uses[key] == 1 for key in (*x.rows, x.columns))]


def _follow(model: CompressedModel, producer: Node) -> _Hidden | None:
    """From a layer to the one layer that reads it, or None where anything else does."""
    channels, current = producer.shape[0], producer
    rows = [producer.arrays[role] for role in ("weight", "bias") if role in producer.arrays]
    while current.name != model.output.node:
        readers = [node for node in model.nodes if current.name in node.inputs]
        if len(readers) != 1:
            return None
        (current,) = readers
        if current.op in LINEAR_OPS:
            return _Hidden(channels, tuple(rows), current.arrays["weight"]) if _ungrouped(current) else None
        if current.op in _PER_CHANNEL:
            rows += [key for key in current.arrays.values() if model.arrays[key].size > 1]
        elif not (current.op == "avg_pool2d" or (current.op == "reshape" and len(current.shape) == 1)):
            return None
    return None


def _ungrouped(node: Node) -> bool:
    return int(node.attrs.get("groups", 1)) == 1
