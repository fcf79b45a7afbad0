"""Small random networks for runtime tests: every layer family, with folded and unfolded activations."""

from __future__ import annotations

from typing import Any

import numpy as np

from he_runtime.model import CompressedModel, InputSpec, Node, OutputSpec
from he_runtime.reference import calibrate


class Builder:
    """Collects nodes and arrays; `calibrated` yields the model with ranges from random inputs."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape, self.nodes, self.arrays = shape, [], {}  # type: ignore[var-annotated]
        self.last = "x"

    def add(
        self, op: str, shape: tuple[int, ...], attrs: dict[str, Any] | None = None, inputs: Any = None, **arrays: Any
    ) -> str:
        name = f"{op}{len(self.nodes)}"
        for role, values in arrays.items():
            self.arrays[f"{name}.{role}"] = np.asarray(values, dtype=np.float64)
        named = {role: f"{name}.{role}" for role in arrays}
        self.nodes.append(Node(name, op, tuple(inputs or (self.last,)), shape, attrs or {}, named))
        self.last = name
        return name

    def dense(self, inputs: int, outputs: int, density: float = 1.0) -> str:
        weight = (
            self.rng.normal(size=(outputs, inputs)) / np.sqrt(inputs) * (self.rng.random((outputs, inputs)) < density)
        )
        return self.add("dense", (outputs,), weight=weight, bias=self.rng.normal(size=outputs) * 0.1)

    def conv(
        self,
        shape: tuple[int, int, int],
        channels: int,
        kernel: int,
        stride: int,
        padding: int,
        groups: int = 1,
        dilation: int = 1,
    ) -> tuple[int, int, int]:
        size = [(n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n in shape[1:]]
        weight = self.rng.normal(size=(channels, shape[0] // groups, kernel, kernel)) / kernel
        attrs = {"stride": [stride] * 2, "padding": [padding] * 2, "dilation": [dilation] * 2, "groups": groups}
        out = (channels, size[0], size[1])
        self.add("conv2d", out, attrs, weight=weight, bias=self.rng.normal(size=channels) * 0.1)
        return out

    def square(self, shape: tuple[int, ...]) -> str:
        return self.add("quadratic", shape, a=1.0, b=0.0, c=0.0)

    def quadratic(self, shape: tuple[int, ...]) -> str:
        n = shape[0]
        return self.add(
            "quadratic",
            shape,
            a=self.rng.uniform(0.1, 0.4, n),
            b=self.rng.uniform(-0.5, 0.5, n),
            c=self.rng.normal(size=n) * 0.1,
        )

    def calibrated(self, name: str = "net") -> CompressedModel:
        model = CompressedModel(name, InputSpec("x", self.shape), OutputSpec(self.last), tuple(self.nodes), self.arrays)
        return calibrate(model, self.inputs(64))

    def inputs(self, count: int, seed: int = 1) -> Any:
        return np.random.default_rng(seed).uniform(-1, 1, size=(count, *self.shape))  # bounded, as images are


def mlp() -> Builder:
    b = Builder((64,))
    b.dense(64, 64)
    b.square((64,))
    b.dense(64, 32, density=0.2)
    b.square((32,))
    b.dense(32, 10)
    return b


def cnn(channels: int = 1) -> Builder:
    b = Builder((channels, 8, 8))
    shape = b.conv((channels, 8, 8), 8, 3, 1, 1)
    b.quadratic(shape)
    shape = b.conv(shape, 16, 3, 2, 1)
    b.square(shape)
    b.add("reshape", (256,))
    b.dense(256, 10)
    return b


def pooled() -> Builder:
    b = Builder((2, 9, 9))
    shape = b.conv((2, 9, 9), 4, 3, 1, 0, groups=2)
    b.square(shape)
    b.add("avg_pool2d", (4, 3, 3), {"kernel": [2, 2], "stride": [2, 2], "padding": [0, 0]})
    b.add("affine", (4, 3, 3), scale=[1.0, 2.0, 0.5, 1.5], shift=[0.1, 0.0, -0.1, 0.2])
    b.add("reshape", (36,))
    b.dense(36, 5)
    return b


def residual() -> Builder:
    b = Builder((64,))
    b.dense(64, 64)
    kept = b.square((64,))
    b.dense(64, 64)
    # Squares of sums of squares have tails that no multiple of a standard deviation bounds; a trained residual branch is
    # small beside its trunk, and so is this one.
    b.arrays[f"{b.last}.weight"] *= 0.25
    inner = b.last
    b.add("add", (64,), inputs=(inner, kept))
    b.square((64,))
    b.dense(64, 10)
    return b


def wide() -> Builder:
    """Tensors that span several ciphertexts at N=4096 (2048 slots): 3000 inputs."""
    b = Builder((3000,))
    b.dense(3000, 40)
    return b


NETWORKS = {"mlp": mlp, "cnn": cnn, "pooled": pooled, "residual": residual, "wide": wide}
