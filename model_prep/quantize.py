"""A model's arrays as integers with their steps, as far as a quantizer's levels are multiples of one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from he_runtime.model import CompressedModel

from .quantizers import Quantizer

__all__ = ["quantize_model"]


def quantize_model(model: CompressedModel, quantizers: Mapping[str, Quantizer]) -> CompressedModel:
    """The model with the named arrays on their grids; statistics are those of the old weights.

    Levels of a codebook, or with a zero point, are no multiples of one step: such arrays stay real, on their grid.
    """
    arrays, steps = dict(model.arrays), dict(model.quantization)
    for key, quantizer in quantizers.items():
        levels = quantizer.project(np.asarray(arrays[key], dtype=np.float64) * steps.pop(key, 1.0))
        if levels.codebook is None and levels.zero_point == 0:
            arrays[key], steps[key] = levels.compact(), levels.scale
        else:
            arrays[key] = levels.values
    return model.with_(arrays=arrays, quantization=steps)
