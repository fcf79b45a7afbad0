"""Sparsity patterns of equal size and different structure, for experiments on what sparsity buys under encryption.

Four controls of this project, for the sceptic's question "is it the structure or the count?": every pattern
keeps exactly the same number of weights in every layer. Unstructured zeros leave every diagonal occupied; random
diagonals save products but hardly a rotation, since their sumset stays full; a grid of baby steps times giant steps
saves both; permuting neurons first lets the grid keep more of the weights' energy at the same price.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from he_runtime.cost import CostTable
from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel
from he_runtime.reference import SAMPLES, calibrate

from ..channels.permutation import permuted
from ..graph import weight_keys
from ..masks import Bools, Mask
from .diagonals import Ints
from .lines import Lines, packed_lines

__all__ = ["PATTERNS", "kept_counts", "pattern_mask", "sparsify"]

PATTERNS = ("unstructured", "diagonals", "grid", "permuted-grid")
Floats = npt.NDArray[np.float64]


def sparsify(
    model: CompressedModel,
    pattern: str,
    density: float,
    *,
    seed: int = 0,
    degree: int = 8192,
    table: CostTable | None = None,
) -> CompressedModel:
    """`model` with the share `density` of each layer's weights kept in one of PATTERNS; the rest is exactly zero.

    Patterns follow the packing of the dense model at ring degree `degree`, weighed by `table` as in `compile`. What stays is scaled up so that every
    layer's weights keep their energy, hence activations their size, and ranges are measured again on the model's own
    samples: so latency is compared between networks that need the same precision. Nothing is trained. The metadata say
    how much energy the mask itself kept. The same seed gives the same model. In a model that is sparse already, a weight
    that is zero counts like any other.

    Raises ModelError for an unknown pattern, a density outside (0, 1], or a model without calibration samples.
    """
    if not 0 < density <= 1:
        raise ModelError(f"cannot sparsify to density {density}: need more than 0 and at most 1")
    samples = model.mean_square("samples")
    if samples is None:
        raise ModelError(f"cannot sparsify {model.name!r}: it has no array {SAMPLES!r}; try calibrating it")
    lines = packed_lines(model, degree, table)
    if pattern == "permuted-grid" and density < 1:
        model = permuted(model, lambda energy: _grid_masks(lines, energy, kept_counts(model, density)))
    mask = pattern_mask(model, pattern, density, lines, seed)
    energy = {key: _real(model, key) ** 2 for key in mask.keep}
    kept = sum(float(e[mask.keep[key]].sum()) for key, e in energy.items())
    report = {
        "structure": mask.structure,
        "density": mask.density,
        "nonzeros": mask.nonzeros,
        "kept_energy": kept / sum(float(e.sum()) for e in energy.values()),
        "seed": seed,
    }
    masked = _apply(model, mask, energy)
    return calibrate(masked.with_(metadata={**model.metadata, "pattern": report}), samples)


def kept_counts(model: CompressedModel, density: float) -> dict[str, int]:
    """Weights that every pattern keeps per array: the share asked for, and at least one per output of the layer."""
    counts = {}
    for key in weight_keys(model):
        shape = model.arrays[key].shape
        counts[key] = max(round(density * int(np.prod(shape))), shape[0])
    return counts


def pattern_mask(model: CompressedModel, pattern: str, density: float, lines: Mapping[str, Lines], seed: int) -> Mask:
    """The mask of one of PATTERNS; for "permuted-grid" the model must be permuted already. ModelError for others."""
    counts = kept_counts(model, density)
    energy = {key: _real(model, key) ** 2 for key in counts}
    if pattern == "unstructured":
        allowed = {key: np.ones(e.shape, dtype=np.bool_) for key, e in energy.items()}
    elif pattern == "diagonals":
        rng = np.random.default_rng(seed)
        allowed = {key: _random_classes(lines[key], counts[key], rng) for key in counts}
    elif pattern in ("grid", "permuted-grid"):
        allowed = _grid_masks(lines, energy, counts)
    else:
        raise ModelError(f"cannot sparsify in pattern {pattern!r}: need one of {', '.join(PATTERNS)}")
    keep = {key: _trimmed(energy[key], allowed[key], counts[key]) for key in counts}
    return Mask(keep, pattern, {"density": density, "seed": seed})


def _real(model: CompressedModel, key: str) -> Floats:
    return np.asarray(model.arrays[key], dtype=np.float64) * model.quantization.get(key, 1.0)


def _random_classes(lines: Lines, count: int, rng: np.random.Generator) -> Bools:
    """Whole classes in random order, until `count` weights are in."""
    sizes = np.bincount(lines.classes.ravel(), minlength=lines.class_count)
    order = rng.permutation(lines.class_count)
    taken = order[: int(np.searchsorted(np.cumsum(sizes[order]), count)) + 1]
    chosen = np.zeros(lines.class_count, dtype=np.bool_)
    chosen[taken] = True
    return np.asarray(chosen[lines.classes])


def _grid_masks(
    lines: Mapping[str, Lines], energy: Mapping[str, Floats], counts: Mapping[str, int]
) -> dict[str, Bools]:
    return {key: _Grid(lines[key], energy[key]).keep(counts[key])[lines[key].classes] for key in counts}


@dataclass
class _Grid:
    """Gives lines up one by one, whichever loses least energy, while enough weights stay on the others.

    The line with the fewest cells loses least, so the longer side of the grid shrinks first and the grid ends nearly
    square, which is where a given number of cells needs the fewest rotations.
    """

    lines: Lines
    energy: Floats

    def keep(self, count: int) -> Bools:
        """Which classes stay: at least `count` weights on the fewest lines, then the weakest classes dropped too."""
        flat, number = self.lines.classes.ravel(), self.lines.class_count
        sizes: Ints = np.bincount(flat, minlength=number).astype(np.int64)
        energy: Floats = np.bincount(flat, weights=self.energy.ravel(), minlength=number).astype(np.float64)
        alive = np.ones(number, dtype=np.bool_)
        while (line := self._weakest(alive, sizes, energy, int(sizes[alive].sum()) - count)) is not None:
            alive[self._classes_on(line)] = False
        for index in np.argsort(energy, kind="stable"):
            if alive[index] and int(sizes[alive].sum()) - sizes[index] >= count:
                alive[index] = False
        return alive

    def _weakest(self, alive: Bools, sizes: Ints, energy: Floats, room: int) -> int | None:
        """The line of least energy among those with some weights, and no more than `room`."""
        classes, lines = self.lines.incidence.T
        on_line = np.bincount(lines, weights=sizes[classes] * alive[classes], minlength=self.lines.line_count)
        loss = np.bincount(lines, weights=energy[classes] * alive[classes], minlength=self.lines.line_count)
        possible = np.flatnonzero((on_line > 0) & (on_line <= room))
        return int(possible[np.argmin(loss[possible])]) if len(possible) else None

    def _classes_on(self, line: int) -> Ints:
        classes, lines = self.lines.incidence.T
        return np.asarray(classes[lines == line])


def _trimmed(energy: Floats, allowed: Bools, count: int) -> Bools:
    """The `count` strongest allowed weights, among them each output's strongest one; ties to the lower index.

    An output without any weight would be a constant, and a network whose output is constant has no encrypted form.
    """
    rank = np.where(allowed, energy, -1.0).reshape(len(energy), -1)
    strongest = rank.argmax(axis=1)
    rows = np.flatnonzero(rank[np.arange(len(rank)), strongest] >= 0)
    rank[rows, strongest[rows]] = np.inf
    keep = np.zeros(rank.size, dtype=np.bool_)
    keep[np.argsort(-rank.ravel(), kind="stable")[:count]] = True
    return (keep & (rank.ravel() >= 0)).reshape(energy.shape)


def _apply(model: CompressedModel, mask: Mask, energy: Mapping[str, Floats]) -> CompressedModel:
    """Zero what the mask drops, and scale what stays to the array's former energy (by the grid's step if quantized)."""
    arrays: dict[str, npt.NDArray[Any]] = dict(model.arrays)
    quantization = dict(model.quantization)
    for key, keep in mask.keep.items():
        gain = float(np.sqrt(energy[key].sum() / max(energy[key][keep].sum(), 1e-300)))
        if key in quantization:
            arrays[key] = np.where(keep, arrays[key], 0).astype(arrays[key].dtype)
            quantization[key] *= gain
        else:
            arrays[key] = np.where(keep, arrays[key] * gain, 0.0)
    return model.with_(arrays=arrays, quantization=quantization)
