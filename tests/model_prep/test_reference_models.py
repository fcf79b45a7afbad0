"""The untrained reference networks: complete, folded, calibrated, reproducible, and labelled as untrained."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from he_runtime.errors import ModelError, Reason
from he_runtime.reference import forward
from model_prep.networks import NETWORKS, build
from model_prep.reference_models import random_reference


@pytest.mark.parametrize("name", NETWORKS)
def test_reference_networks_are_ready_to_plan(name: str) -> None:
    model = random_reference(name)
    spec = NETWORKS[name]
    assert model.input.shape == spec.input_shape and model.output.labels == spec.labels
    assert model.metadata["weights"] == "random" and model.metadata["median_margin"] > 0
    assert {n.op for n in model.nodes} <= {"conv2d", "dense", "reshape", "quadratic"}
    for node in model.nodes:
        if node.op == "quadratic":
            a, b = model.array(node, "a"), model.array(node, "b")
            assert a is not None and b is not None and (a == 1).all() and not b.any()
    assert model.digest == random_reference(name).digest
    assert model.digest != random_reference(name, seed=1).digest


@pytest.mark.parametrize("name", ["mnist-tenseal-cnn", "mnist-lola"])
def test_networks_of_squares_are_exported_exactly(name: str) -> None:
    model, module = random_reference(name), build(name)
    x = np.random.default_rng(0).normal(size=(3, *NETWORKS[name].input_shape))
    with torch.no_grad():
        expected = module(torch.from_numpy(x).float()).double().numpy()
    assert np.abs(forward(model, x) - expected).max() < 1e-5


def test_the_seed_decides_the_weights() -> None:
    one, same, other = build("digits-mlp", 1), build("digits-mlp", 1), build("digits-mlp", 2)
    states = [net.state_dict()["fc1.weight"] for net in (one, same, other)]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_an_unknown_network_is_a_typed_error() -> None:
    with pytest.raises(ModelError, match="need one of") as caught:
        build("resnet-9000")
    assert caught.value.reason is Reason.MODEL_UNKNOWN


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, model_prep; assert 'torch' not in sys.modules; model_prep.Recipe; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=".")
