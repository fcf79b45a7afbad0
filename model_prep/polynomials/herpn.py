"""HerPN: an activation of degree 2 for networks that are trained with it from scratch (AESPA, section 3).

ReLU's expansion in the orthonormal Hermite polynomials h0 = 1, h1 = x, h2 = (x^2 - 1) / sqrt 2 starts with the
coefficients 1 / sqrt(2 pi), 1/2 and 1 / sqrt(4 pi). Each basis function is normalized by a batch norm of its own, so
that no sign or size of the input lets one of them explode; a gain and an offset per channel are learned. In evaluation
all of it is one a*x^2 + b*x + c per channel, which capture finds without being told (batch norms are affine there).

It takes the place of a batch norm and the activation after it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["HerPN"]

Floats = npt.NDArray[np.float64]

_CONSTANT, _LINEAR, _QUADRATIC = 1 / math.sqrt(2 * math.pi), 0.5, 1 / math.sqrt(4 * math.pi)


class HerPN(nn.Module):
    """gamma * (1 / sqrt(2 pi) + BN(x) / 2 + BN((x^2 - 1) / sqrt 2) / sqrt(4 pi)) + beta on (B, channels, ...).

    The two batch norms have no gain or offset of their own; `eps` and `momentum` are theirs.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.first = _Norm(channels, eps, momentum)
        self.second = _Norm(channels, eps, momentum)
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        second = (x * x - 1) * (1 / math.sqrt(2))
        mixed = _CONSTANT + _LINEAR * self.first(x) + _QUADRATIC * self.second(second)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        result: Tensor = self.gamma.reshape(shape) * mixed + self.beta.reshape(shape)
        return result

    @torch.no_grad()
    def quadratic(self) -> tuple[Floats, Floats, Floats]:
        """a, b, c (channels,) of what the module computes in evaluation mode."""
        mean1, deviation1 = self.first.moments()
        mean2, deviation2 = self.second.moments()
        gamma, beta = (p.double().numpy() for p in (self.gamma, self.beta))
        a = gamma * _QUADRATIC / (math.sqrt(2) * deviation2)
        b = gamma * _LINEAR / deviation1
        c = gamma * _CONSTANT - b * mean1 - a * (1 + math.sqrt(2) * mean2) + beta
        return a, b, c


class _Norm(_BatchNorm):
    """Batch norm without gain and offset, for vectors as well as images."""

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__(channels, eps=eps, momentum=momentum, affine=False)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"HerPN: got a tensor of {input.ndim} axes, need (batch, channels, ...)")

    def moments(self) -> tuple[Floats, Floats]:
        """The running mean and deviation, (channels,)."""
        assert self.running_mean is not None and self.running_var is not None
        mean, variance = (np.asarray(v.double().numpy()) for v in (self.running_mean, self.running_var))
        return mean, np.sqrt(variance + self.eps)
