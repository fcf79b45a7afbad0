"""The activations that preparation knows how to replace by a polynomial: one row each, torch side and NumPy side.

None of them can run under CKKS. `compress` replaces them by learned quadratics; `export` refuses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

__all__ = ["ACTIVATIONS", "evaluate"]

TensorFunction = Callable[..., torch.Tensor]

ACTIVATIONS: dict[str, TensorFunction] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
    "softplus": F.softplus,
    "selu": F.selu,
    "celu": F.celu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
}


def evaluate(attrs: Mapping[str, Any], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The activation that a node's attributes name, on float64 values of any shape."""
    options = {k: v for k, v in attrs.items() if k != "function"}
    result = ACTIVATIONS[attrs["function"]](torch.from_numpy(np.ascontiguousarray(x)), **options)
    return np.asarray(result.numpy(), dtype=np.float64)
