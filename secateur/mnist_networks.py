"""The networks of `secateur bench mnist`: dense, with squares as activations, trained for a few epochs and kept.

What is measured does not depend on the weights; trained ones make the answers worth comparing. Squares throughout,
since that is what the other systems' own MLP, LoLA and LeNet have.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .trained import identity, kept

if TYPE_CHECKING:
    from torch import nn

    from he_runtime import CompressedModel
    from model_prep.data import Dataset

__all__ = ["NETWORKS", "BenchNetwork", "dense_model"]

_ROUNDING = 1e-6  # of a node's range: float32's, and some to spare


@dataclass(frozen=True)
class BenchNetwork:
    """A network of model_prep.networks by its class, how long it trains, and on how many samples (0: all)."""

    module: str
    title: str
    epochs: int
    train_limit: int = 0


NETWORKS = {
    "mlp": BenchNetwork("MnistMlp", "MLP 784-128-128-10", 4),
    "lola": BenchNetwork("Lola", "LoLA", 4),
    "lenet": BenchNetwork("LeNet", "LeNet 32-64-512", 1, 20000),
    "tenseal-cnn": BenchNetwork("TensealCnn", "TenSEAL's CNN", 4),
}


def dense_model(name: str, data: Dataset, cache: Path | None) -> CompressedModel:
    """One of NETWORKS, trained on `data`: nothing pruned, nothing quantized, batch norms folded."""
    from model_prep import Recipe, compress
    from model_prep.settings import Training

    network = NETWORKS[name]
    teacher = Training(epochs=network.epochs, learning_rate=1e-3, batch_size=128, label_smoothing=0.1)
    recipe = Recipe(f"bench-{name}", dataset="mnist", train_limit=network.train_limit, threads=2, teacher=teacher)
    key = identity(data.name.encode(), repr(recipe.to_dict()).encode(), network.module.encode())
    return _rounded(kept(recipe.name, key, cache, lambda: compress(_module(network), recipe, data)))


def _rounded(model: CompressedModel) -> CompressedModel:
    """Without the constants after a square that are only what rounding left of folding a batch norm."""
    import numpy as np

    arrays = dict(model.arrays)
    for node in model.nodes:
        if node.op == "quadratic":
            c = arrays[node.arrays["c"]]
            low, high = model.ranges[node.name]
            if np.abs(c).max() < _ROUNDING * (high - low):
                arrays[node.arrays["c"]] = np.zeros((), c.dtype)
    return model.with_(arrays=arrays)


def _module(network: BenchNetwork) -> nn.Module:
    import torch

    from model_prep import networks

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = getattr(networks, network.module)(torch.square)
    return module
