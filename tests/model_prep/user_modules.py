"""Modules as their authors write them: views, buffers, functionals, reuse, parametrizations, attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


class Vgg(nn.Module):
    """Sequential inside, adaptive pooling, dropout, torch.flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), Square(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 3), Square()
        )
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return y


class Block(nn.Module):
    """A residual block with a projected or an identical shortcut, added in place."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.square(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return 0.1 * out**2 + 0.5 * out


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Block(3, 4, 1), Block(4, 4, 1), Block(4, 8, 2))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.layers(x).mean((2, 3)))
        return y


class Depthwise(nn.Module):
    """Depthwise with a channel multiplier, then pointwise; reshape by the batch's own size."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4)
        self.pointwise = nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise(self.depthwise(x)).pow(2)
        y: Tensor = self.fc(x.reshape(x.shape[0], -1))
        return y


class NormalizedMlp(nn.Module):
    """BatchNorm1d after Linear, dropout, buffers for the normalization, an input changed in place."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(10))
        self.a, self.norm, self.dropout, self.b = (
            nn.Linear(10, 8),
            nn.BatchNorm1d(8),
            nn.Dropout(0.3),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x -= self.mean
        x /= 2.0
        y: Tensor = self.b(self.dropout(torch.square(self.norm(self.a(x)))))
        return y


class KeywordDefaults(nn.Module):
    """Arguments that have defaults, one of them an absent tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(10, 4)

    def forward(self, x: Tensor, scale: float = 2.0, mask: Tensor | None = None, *, squared: bool = True) -> Tensor:
        y: Tensor = self.a(x) * scale
        if mask is not None:
            y = y * mask
        return y**2 if squared else y


class Reused(nn.Module):
    """One module used twice in a ModuleList, and a ModuleDict."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(10, 10)
        self.layers = nn.ModuleList([shared, shared])
        self.heads = nn.ModuleDict({"out": nn.Linear(10, 3)})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.square(layer(x)) * 0.1
        y: Tensor = self.heads["out"](x)
        return y


class ReusedConvolution(nn.Module):
    """Convolution and batch norm reused on their own output; the sum joins unequal histories."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        z = self.norm(self.conv(y))
        return torch.square(y + z) + 2 * x


class LeNetView(nn.Module):
    """view(-1, features) with the features counted in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 5), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(torch.square(self.conv(x)), (2, 2))
        count = 1
        for size in x.size()[1:]:
            count *= size
        y: Tensor = self.fc(x.view(-1, count))
        return y


class FromVector(nn.Module):
    """A vector that becomes an image and then a vector again."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.unflatten, self.conv = nn.Linear(12, 32), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.conv(self.unflatten(self.fc(x))), start_dim=1)


class Parametrized(nn.Module):
    """Weights that are themselves computed."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
        self.b = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x))
        return y


class Scalars(nn.Module):
    """Arithmetic with plain numbers, constants on either side, alpha, in-place methods."""

    def forward(self, x: Tensor) -> Tensor:
        y = 3 - (2 * x + 1) / 4 + (-x) * 0.5 - torch.tensor(1.5)
        y = y + x.mul(2).add(1).sub(x, alpha=3).div(2) + torch.rsub(x, x * x)
        return torch.add(torch.ones(6, dtype=x.dtype), y.clone().add_(1).mul_(2), alpha=2)


class Pooled(nn.Module):
    """Means and sums over the image, with and without their axes, squeezed away one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.point = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        mean = self.point(x.mean(dim=[-2, -1], keepdim=True)).squeeze(-1).squeeze(-1)
        return mean + self.point(x).sum((2, 3))


class Matrices(nn.Module):
    """Products with transposed parameters, addmm with a bias of shape (1, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.w.t()) + torch.matmul(x, self.w.T) + torch.addmm(self.bias, x, self.w.t(), alpha=2)


class Attention(nn.Module):
    """Gates, scores and joins: products of tensors that depend on the input, of functions of them too."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), 0.1 * self.k(x) + 1, self.v(x)
        scores = q.view(-1, 2, 2, 3) @ k.view(-1, 2, 3, 2)
        heads = torch.matmul(scores / 6, v.view(-1, 2, 2, 3)).flatten(1)
        single = torch.bmm(q.view(-1, 3, 4), v.view(-1, 4, 3)).flatten(1)
        return torch.cat((heads * v, (2 * heads + 1) * (q - 1), torch.square(single) - 2, x), dim=-1)


class Answer(nn.Module):
    """A dictionary with one tensor, computed without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 2)

    @torch.no_grad()
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x.detach().clone().contiguous().to(x.dtype)
        return {"logits": self.a(x.reshape(len(x), -1))}


GOOD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vgg": (Vgg, (1, 8, 8)),
    "resnet": (ResNet, (3, 8, 8)),
    "depthwise": (Depthwise, (4, 8, 8)),
    "normalized-mlp": (NormalizedMlp, (10,)),
    "keyword-defaults": (KeywordDefaults, (10,)),
    "reused": (Reused, (10,)),
    "reused-convolution": (ReusedConvolution, (2, 4, 4)),
    "lenet-view": (LeNetView, (2, 8, 8)),
    "from-vector": (FromVector, (12,)),
    "parametrized": (Parametrized, (6,)),
    "scalars": (Scalars, (6,)),
    "pooled": (Pooled, (1, 6, 6)),
    "matrices": (Matrices, (4,)),
    "attention": (Attention, (8,)),
    "answer": (Answer, (4,)),
    "quartic": (lambda: nn.Sequential(nn.Linear(4, 4), Square(), nn.Identity(), Square()), (4,)),
}
