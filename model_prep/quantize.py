"""Symmetric integer weights: w = q * step with q in [-(2^(b-1) - 1), 2^(b-1) - 1], one step per tensor, zero point 0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from he_runtime.model import CompressedModel

__all__ = ["quantize_array", "quantize_model"]


def quantize_array(values: npt.NDArray[Any], bits: int) -> tuple[npt.NDArray[np.signedinteger[Any]], float]:
    """(integers, step) with |values - integers * step| <= step / 2 everywhere. All zeros give step 1."""
    limit = 2 ** (bits - 1) - 1
    largest = float(np.abs(values).max(initial=0.0))
    step = largest / limit if largest else 1.0
    integers = np.clip(np.rint(np.asarray(values, dtype=np.float64) / step), -limit, limit)
    return integers.astype(np.int8 if bits <= 8 else np.int16), step


def quantize_model(model: CompressedModel, keys: Iterable[str], bits: int) -> CompressedModel:
    """The model with the named arrays as integers and their steps recorded; statistics are those of the old weights."""
    arrays, steps = dict(model.arrays), dict(model.quantization)
    for key in keys:
        real = np.asarray(arrays[key], dtype=np.float64) * steps.get(key, 1.0)
        arrays[key], steps[key] = quantize_array(real, bits)
    return model.with_(arrays=arrays, quantization=steps)
