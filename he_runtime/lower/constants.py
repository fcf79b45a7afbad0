"""Elements that pruning made constant: a neuron without weights is its bias, whatever the input.

Their effect moves into the biases of the layers that read them, so no ciphertext is spent on them: in a packing with one
feature per ciphertext a dead neuron is a ciphertext that is never computed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from .maps import LinearMap
from .stages import AddStage, LinearStage, QuadraticStage, Stage

__all__ = ["Constants", "fold_constants"]

# Tensor -> the value of each constant element, NaN where the element depends on the input: (size,)
Constants = dict[str, npt.NDArray[np.float64]]


def fold_constants(stages: list[Stage]) -> tuple[list[Stage], Constants]:
    """The stages with constant inputs moved into biases, and which elements of each tensor are constant."""
    constants: Constants = {}
    folded = []
    for stage in stages:
        if isinstance(stage, LinearStage):
            stage = _fold(stage, constants.get(stage.input))
            empty = np.diff(stage.map.matrix.indptr) == 0
            constants[stage.name] = np.where(empty, stage.map.bias, np.nan)
        elif isinstance(stage, QuadraticStage):
            x = constants.get(stage.input, np.full(stage.a.shape, np.nan))
            constants[stage.name] = stage.a * x * x + stage.b * x + stage.c
        else:
            assert isinstance(stage, AddStage)
            nothing = np.full(int(np.prod(stage.shape)), np.nan)
            constants[stage.name] = constants.get(stage.left, nothing) + constants.get(stage.right, nothing)
        folded.append(stage)
    return folded, constants


def _fold(stage: LinearStage, known: npt.NDArray[np.float64] | None) -> LinearStage:
    if known is None or np.isnan(known).all():
        return stage
    matrix, constant = stage.map.matrix, ~np.isnan(known)
    bias = stage.map.bias + matrix @ np.where(constant, known, 0.0)
    kept = sp.csr_array(matrix @ sp.diags_array((~constant).astype(np.float64)))
    return replace(stage, map=LinearMap(kept, bias).without_zeros())
