"""Which family the time of a layer belongs to."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from test_he_model import Real, real  # noqa: F401 - the fixture of a tiny model on the real runtime

from he_runtime import CompressedModel
from he_runtime.model import OPS, InputSpec, Node, OutputSpec
from server.engine.he_model import build, describe
from server.engine.layer_clock import LayerClock
from server.observe.families import FAMILIES, OTHER, layer_families


def make_network() -> CompressedModel:
    """conv, norm, square, pool, reshape, dense, polynomial, with names that say nothing."""
    one, zero = np.ones(()), np.zeros(())
    arrays = {
        "k": np.ones((2, 1, 3, 3)),
        "w": np.ones((4, 8)),
        "one": one,
        "zero": zero,
        "p": np.array([0.0, 1.0, 0.5]),
    }
    conv = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    pool = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}
    nodes = (
        Node("a", "conv2d", ("x",), (2, 4, 4), conv, {"weight": "k"}),
        Node("b", "affine", ("a",), (2, 4, 4), {}, {"scale": "one", "shift": "zero"}),
        Node("c", "quadratic", ("b",), (2, 4, 4), {}, {"a": "one", "b": "zero", "c": "zero"}),
        Node("d", "avg_pool2d", ("c",), (2, 2, 2), pool),
        Node("e", "reshape", ("d",), (8,)),
        Node("f", "dense", ("e",), (4,), {}, {"weight": "w"}),
        Node("g", "polynomial", ("f",), (4,), {"basis": "power", "low": -1.0, "high": 1.0}, {"coefficients": "p"}),
        Node("h", "add", ("f", "g"), (4,)),
    )
    return CompressedModel("net", InputSpec("x", (1, 4, 4)), OutputSpec("h"), nodes, arrays)


def test_a_merged_layer_is_of_its_heaviest_parts_family() -> None:
    """The planner names a chain of linear layers by its last: b holds the convolution a, f the pooling d and e."""
    families = layer_families(make_network(), ["b", "c", "f", "g", "h", "stagger"])
    assert families == {
        "b": "convolution",
        "c": "activation",
        "f": "linear",
        "g": "activation",
        "h": "elementwise",
        "stagger": OTHER,
    }


def test_what_the_plan_names_by_itself_is_not_merged() -> None:
    assert layer_families(make_network(), ["a", "b", "d", "e", "f"]) == {
        "a": "convolution",
        "b": "normalization",
        "d": "pooling",
        "e": "shape",
        "f": "linear",
    }


def test_the_layers_that_a_worker_times_are_those_that_have_families(real: Real, tmp_path: Path) -> None:  # noqa: F811
    """On the real runtime: what run names, describe has a family for, and the layers are nearly all of the time."""
    directory = real.config.models / "served" / "1"
    families = describe(directory, "served", "1").families
    assert families == {"dense": "linear", "square": "activation"}
    model = build(directory, "tenseal")
    (tmp_path / "keys").write_bytes(real.key_file)
    keys = model.load_keys(tmp_path / "keys", lambda: None)
    clock, started = LayerClock(), time.monotonic()
    model.run(real.encrypt(), keys, lambda: None, clock)
    clock.stop()
    assert set(clock.ms) == set(families)
    assert 0 < sum(clock.ms.values()) <= (time.monotonic() - started) * 1e3


def test_every_kind_of_layer_has_a_family() -> None:
    """A new kind of layer fails here until it has one."""
    for op in OPS:
        node = Node("n", op, ("x",), (1,))
        model = CompressedModel.__new__(CompressedModel)  # of the shape that matters here, whatever the kind needs
        object.__setattr__(model, "nodes", (node,))
        assert layer_families(model, ["n"])["n"] in set(FAMILIES) - {OTHER}, op
