"""The reference networks, as plain torch modules: what a user would write, with nothing of this project in them.

The one exception has this project's HerPN in the place of batch norms and activations.

Sizes follow the tutorials and papers that made them customary: TenSEAL's MNIST tutorial, LoLA (Brutzkus et al.,
ICML 2019), LeNet. Three small ones for scikit-learn's 8x8 digits train in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from he_runtime.errors import ModelError, Reason

from .polynomials.herpn import HerPN

__all__ = ["NETWORKS", "NetworkSpec", "build"]

Activation = Callable[[Tensor], Tensor]
DIGIT_LABELS = tuple(str(digit) for digit in range(10))


class DigitsMlp(nn.Module):
    """64-64-64-10 on flattened 8x8 images."""

    def __init__(self, activation: Activation = F.relu) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(64, 64)
        self.fc2 = nn.Linear(64, 64)
        self.fc3 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.fc1(x.flatten(1)))
        x = self.activation(self.fc2(x))
        y: Tensor = self.fc3(x)
        return y


class DigitsCnn(nn.Module):
    """conv3x3(8) - BN - act - conv3x3(16, stride 2) - BN - act - fc(256-10) on 1x8x8 images."""

    def __init__(self, activation: Activation = F.relu) -> None:
        super().__init__()
        self.activation = activation
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.bn1(self.conv1(x)))
        x = self.activation(self.bn2(self.conv2(x)))
        y: Tensor = self.fc(x.flatten(1))
        return y


class DigitsCnnHerpn(nn.Module):
    """DigitsCnn to be trained without activations: conv3x3(8) - HerPN - conv3x3(16, stride 2) - HerPN - fc(256-10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(1, 8, 3, padding=1), HerPN(8)
        self.conv2, self.act2 = nn.Conv2d(8, 16, 3, stride=2, padding=1), HerPN(16)
        self.fc = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.conv1(x))
        x = self.act2(self.conv2(x))
        y: Tensor = self.fc(x.flatten(1))
        return y


class TensealCnn(nn.Module):
    """The network of TenSEAL's MNIST tutorial: conv7x7(4, stride 3) - square - fc(256-64) - square - fc(64-10)."""

    def __init__(self, activation: Activation = torch.square) -> None:
        super().__init__()
        self.activation = activation
        self.conv = nn.Conv2d(1, 4, 7, stride=3)
        self.fc1 = nn.Linear(256, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.conv(x)).flatten(1)
        x = self.activation(self.fc1(x))
        y: Tensor = self.fc2(x)
        return y


class MnistMlp(nn.Module):
    """784-128-128-10."""

    def __init__(self, activation: Activation = F.relu) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(784, 128)
        self.fc2 = nn.Linear(128, 128)
        self.fc3 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.fc1(x.flatten(1)))
        x = self.activation(self.fc2(x))
        y: Tensor = self.fc3(x)
        return y


class Lola(nn.Module):
    """conv2x2(5, stride 2) - square - fc(980-100) - square - fc(100-10)."""

    def __init__(self, activation: Activation = torch.square) -> None:
        super().__init__()
        self.activation = activation
        self.conv = nn.Conv2d(1, 5, 2, stride=2)
        self.fc1 = nn.Linear(980, 100)
        self.fc2 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.conv(x)).flatten(1)
        x = self.activation(self.fc1(x))
        y: Tensor = self.fc2(x)
        return y


class LeNet(nn.Module):
    """conv5x5(32, stride 2) - act - conv5x5(64, stride 2) - act - fc(3136-512) - act - fc(512-10); strides, no pooling."""

    def __init__(self, activation: Activation = F.relu) -> None:
        super().__init__()
        self.activation = activation
        self.conv1 = nn.Conv2d(1, 32, 5, stride=2, padding=2)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 5, stride=2, padding=2)
        self.bn2 = nn.BatchNorm2d(64)
        self.fc1 = nn.Linear(3136, 512)
        self.fc2 = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.bn1(self.conv1(x)))
        x = self.activation(self.bn2(self.conv2(x)))
        x = self.activation(self.fc1(x.flatten(1)))
        y: Tensor = self.fc2(x)
        return y


@dataclass(frozen=True)
class NetworkSpec:
    """How to build one reference network and what it eats. `dataset` names a loader of model_prep.data."""

    factory: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    dataset: str
    labels: tuple[str, ...] = DIGIT_LABELS


NETWORKS: dict[str, NetworkSpec] = {
    "digits-mlp": NetworkSpec(DigitsMlp, (1, 8, 8), "digits"),
    "digits-cnn": NetworkSpec(DigitsCnn, (1, 8, 8), "digits"),
    "digits-cnn-herpn": NetworkSpec(DigitsCnnHerpn, (1, 8, 8), "digits"),
    "mnist-tenseal-cnn": NetworkSpec(TensealCnn, (1, 28, 28), "mnist"),
    "mnist-mlp": NetworkSpec(MnistMlp, (1, 28, 28), "mnist"),
    "mnist-lola": NetworkSpec(Lola, (1, 28, 28), "mnist"),
    "mnist-lenet": NetworkSpec(LeNet, (1, 28, 28), "mnist"),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A freshly initialised reference network; the same seed gives the same weights.

    Raises ModelError (MODEL_UNKNOWN) on a name that is not in NETWORKS.
    """
    if name not in NETWORKS:
        raise ModelError(f"cannot build network {name!r}: need one of {sorted(NETWORKS)}", Reason.MODEL_UNKNOWN)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name].factory()
