"""Networks whose channels hang together in every way that removal has to respect."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_prep.capture.capture import capture
from model_prep.graph import Graph

__all__ = ["NETWORKS", "SHAPE", "Depthwise", "Gated", "Plain", "Residual", "network"]

SHAPE = (2, 6, 6)


class Gated(nn.Module):
    """A network that reads `gates[layer]` (channels,), zeros and ones, times that layer's channels before the next."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, Tensor] = {}

    def gate(self, layer: str, x: Tensor) -> Tensor:
        found = self.gates.get(layer)
        return x if found is None else x * found.reshape((-1,) + (1,) * (x.ndim - 2))


def bent(x: Tensor) -> Tensor:
    """A quadratic that is not zero at zero."""
    return 0.3 * x * x + 0.5 * x + 0.7


class Plain(Gated):
    """Convolutions with batch norms, a pool, a flatten of blocks of columns, two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.c2, self.b2 = nn.Conv2d(5, 7, 3, stride=2, padding=1), nn.BatchNorm2d(7)
        self.f1, self.f2 = nn.Linear(7 * 4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate("c1", bent(self.b1(self.c1(x))))
        x = self.gate("c2", F.avg_pool2d(bent(self.b2(self.c2(x))), 2, stride=1))
        x = self.gate("f1", bent(self.f1(x.flatten(1))))
        y: Tensor = self.f2(x)
        return y


class Residual(Gated):
    """Two branches add up: the sum keeps the union, and the second sum ties four layers."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.c3, self.skip = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.b3, self.f = nn.BatchNorm2d(6), nn.Linear(6 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate("c1", bent(self.c1(x)))
        inner = self.gate("c2", bent(self.c2(x)))
        total = self.gate("c3", bent(self.b3(self.c3(inner)) + x))
        y = self.gate("c3", self.skip(total) + total)
        z: Tensor = self.f(y.flatten(1))
        return z


class Joined(Gated):
    """A concatenation, one part of which is the input; then a product of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
        self.left, self.right = nn.Conv2d(9, 5, 3), nn.Conv2d(9, 5, 3)
        self.f = nn.Linear(5 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.gate("c1", bent(self.c1(x))), x, self.gate("c2", bent(self.c2(x)))], 1)
        y = self.gate("left", bent(self.left(both)) * bent(self.right(both)))
        z: Tensor = self.f(y.flatten(1))
        return z


class Depthwise(Gated):
    """Depthwise with a multiplier of two, then a convolution of two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(2, 6, 1)
        self.depth, self.point = nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.Conv2d(12, 4, 1)
        self.pairs, self.f = nn.Conv2d(4, 6, 3, groups=2), nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate("c1", bent(self.c1(x)))
        x = self.gate("depth", bent(self.depth(x)))
        x = self.gate("point", bent(self.point(x)))
        x = self.gate("pairs", bent(self.pairs(x)))
        y: Tensor = self.f(x.flatten(1))
        return y


class Unflattened(Gated):
    """Features of a dense layer become an image: those of one channel are one unit. A layer is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.f1, self.twice = nn.Linear(72, 5 * 9), nn.Conv2d(5, 5, 3, padding=1)
        self.f2 = nn.Linear(5 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate("f1", bent(self.f1(x.flatten(1)))).reshape(-1, 5, 3, 3)
        for _ in range(2):
            x = self.gate("twice", bent(self.twice(x)))
        y: Tensor = self.f2(x.flatten(1))
        return y


NETWORKS: list[type[Gated]] = [Plain, Residual, Joined, Depthwise, Unflattened]


@cache
def network(kind: type[Gated]) -> tuple[Gated, Graph]:
    """A network in double precision whose batch norms have statistics of their own, and its graph."""
    torch.manual_seed(7)
    module = kind().double()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.normal_(child.weight)
            nn.init.normal_(child.bias)
            nn.init.normal_(child.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(child.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    module.eval()
    return module, capture(module, torch.zeros(1, *SHAPE, dtype=torch.float64))
