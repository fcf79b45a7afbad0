"""Export a class of your own: functional calls, views, a reused layer, a residual addition, any `forward`."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from he_runtime import compile, run_clear
from he_runtime.errors import ModelError
from model_prep import export


class Residual(nn.Module):
    """Nothing in here knows of encryption: what counts is what `forward` computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.mix = nn.Linear(64, 64)
        self.out = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.conv(x)).pow(2)  # a square is the activation that CKKS computes exactly
        h = h.view(h.shape[0], -1)
        h = h + self.mix(h)
        return F.linear(h, self.out.weight, self.out.bias)


class Unsupported(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x)[0]


def refusal(module: nn.Module) -> str:
    """What the exporter says to a module; empty if it takes it."""
    try:
        export(module, torch.rand(2, 8))
    except ModelError as error:
        return error.message
    return ""


def main() -> None:
    torch.manual_seed(0)
    module = Residual().eval()
    images = torch.rand(64, 1, 8, 8)
    model = export(module, images[:2], name="residual", labels=("a", "b", "c"), calibration=images.numpy())
    plan = compile(model)
    print([f"{node.name}: {node.op}" for node in model.nodes])

    with torch.no_grad():
        wanted = module(images).double().numpy()
    error = np.abs(run_clear(plan, images.numpy()) - wanted).max()
    print(f"plan against torch: largest difference {error:.1e}")
    assert error < 1e-4 * np.abs(wanted).max()  # torch computes in float32

    # What has no homomorphic form is refused with the operation and the line it stands in.
    answer = refusal(Unsupported())
    print(answer)
    assert "sort" in answer and "torch.sort(x)[0]" in answer


if __name__ == "__main__":
    main()
