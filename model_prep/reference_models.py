"""Reference networks without training: for tests and cost tables that need a shape and not an accuracy."""

from __future__ import annotations

import numpy as np
import torch

from he_runtime.model import CompressedModel
from he_runtime.reference import calibrate

from .capture.capture import capture
from .data import load
from .folding.folding import fold
from .networks import NETWORKS, build
from .polynomials.polynomial import replace_activations

__all__ = ["random_reference"]

CALIBRATION_SAMPLES = 64


def random_reference(name: str, seed: int = 0) -> CompressedModel:
    """One of NETWORKS with random weights, quadratics fitted to its activations, folded, calibrated on digits.

    Nothing is trained: metadata["weights"] is "random" and outputs mean nothing. Batch norms get random statistics, so
    that folding them is exercised. The same seed gives the same model, whatever data are installed.
    """
    module = build(name, seed)
    spec = NETWORKS[name]
    data = load("digits" if spec.dataset == "digits" else "digits-upscaled")
    x = data.normalized("train")[:CALIBRATION_SAMPLES]
    _randomize_batch_norms(module, seed)
    graph, _ = replace_activations(capture(module, x[:2], input_name=data.input_spec.name), x)
    metadata = {"weights": "random", "seed": seed, "network": name, "data": data.name}
    model = fold(graph).to_model(name, data.input_spec, spec.labels, metadata=metadata)
    return calibrate(model, x.astype(np.float64))


def _randomize_batch_norms(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for values, low, high in (
                (layer.running_mean, -0.2, 0.2),
                (layer.running_var, 0.05, 0.3),
                (layer.weight.data, 0.7, 1.3),
                (layer.bias.data, -0.2, 0.2),
            ):
                assert values is not None
                values.uniform_(low, high, generator=generator)
