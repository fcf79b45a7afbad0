"""Straight-through rounding: on the grid to the last bit, with the gradient of the identity."""

from __future__ import annotations

import pytest
import torch

from model_prep.trainable import straight_through


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("magnitude", [1e-20, 1.0, 3e7])
def test_values_lie_exactly_on_the_grid(bits: int, magnitude: float) -> None:
    values = magnitude * torch.randn(4000, generator=torch.Generator().manual_seed(bits))
    values.requires_grad_()
    rounded = straight_through(values, bits)
    limit = 2 ** (bits - 1) - 1
    step = values.detach().abs().max() / limit
    integers = torch.arange(-limit, limit + 1)
    assert torch.isin(rounded.detach(), integers * step).all()
    assert float((rounded - values).detach().abs().max()) <= 0.5001 * float(step)
    (rounded * torch.arange(4000.0)).sum().backward()
    assert values.grad is not None and torch.equal(values.grad, torch.arange(4000.0))
