"""compress from end to end, on tiny budgets: accuracy, masks, determinism, reports."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from he_runtime import compile
from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel
from he_runtime.plan import Kind
from he_runtime.reference import forward
from model_prep import Recipe, compress
from model_prep.data import Dataset, load
from model_prep.graph import Graph
from model_prep.methods import DiagonalClasses, diagonals
from model_prep.packing.packing import packed_classes

TRAINING = {"epochs": 6, "learning_rate": 4e-3}
BASE = {"name": "tiny", "teacher": {"epochs": 12, "learning_rate": 5e-3}}
STEPS = [
    {"method": "quadratics", "training": TRAINING},
    {"method": "diagonals", "density": 0.5, "training": TRAINING},
    {"method": "integers", "bits": 8, "training": {"epochs": 1, "learning_rate": 2e-4}},
]


class Residual(nn.Module):
    """A user's own network: functional ReLU, a residual sum, batch norm, a module used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.branch = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.ReLU()
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = self.act(x + self.branch(x))
        y: Tensor = self.head(x.view(len(x), -1))
        return y


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def compressed(digits: Dataset) -> CompressedModel:
    torch.manual_seed(0)
    recipe = Recipe.from_dict({**BASE, "steps": STEPS})
    return compress(Residual(), recipe, digits, quiet=True)


def test_a_compressed_network_still_classifies(compressed: CompressedModel, digits: Dataset) -> None:
    stages = compressed.metadata["accuracy"]
    assert list(stages) == ["teacher", "quadratics", "diagonals", "integers", "final"]
    logits = forward(compressed, digits.normalized("test").astype(np.float64))
    measured = float((logits.argmax(1) == digits.y_test).mean())
    assert measured == pytest.approx(stages["final"], abs=1e-6)
    assert measured >= 0.9
    assert stages["final"] == pytest.approx(stages["integers"], abs=0.003)


def test_the_artifact_holds_only_homomorphic_operations(compressed: CompressedModel) -> None:
    ops = [n.op for n in compressed.nodes]
    assert sorted(ops) == ["add", "conv2d", "conv2d", "dense", "quadratic", "quadratic", "reshape"]
    last = [n for n in compressed.nodes if n.op == "quadratic"][-1]
    a, b, c = (compressed.array(last, role) for role in "abc")
    assert a is not None and b is not None and c is not None
    assert np.allclose(a, a.reshape(-1)[0]) or (a > 0).all()


def test_weights_are_integers_on_the_masked_pattern(compressed: CompressedModel) -> None:
    keys = [n.arrays["weight"] for n in compressed.nodes if "weight" in n.arrays]
    assert set(compressed.quantization) == set(keys)
    plan = compile(compressed)
    classes = packed_classes(Graph.from_model(compressed), plan.params.degree)
    products = {op.layer: len(op.cells) for op in plan.ops if op.kind is Kind.LINEAR_TRANSFORM}
    for name, key in zip(products, keys, strict=True):
        integers = compressed.arrays[key]
        assert integers.dtype == np.int8
        kept = [c for c in np.unique(classes[key]) if integers[classes[key] == c].any()]
        assert len(kept) <= round(0.5 * len(np.unique(classes[key]))), key
        assert products[name] == len(kept)


def test_the_report_says_what_was_measured_on_which_data(compressed: CompressedModel) -> None:
    report = compressed.metadata
    assert report["data"] == "digits" and report["test_samples"] == 360
    assert set(report["logit_rms_change"]) == {"quadratics", "diagonals", "integers", "final"}
    assert all(0 < change < 100 for change in report["logit_rms_change"].values())
    assert report["logit_rms_change"]["final"] < 1e-3
    assert [step["family"] for step in report["steps"]] == ["approximation", "pruning", "quantization"]
    pruning = report["steps"][1]
    assert pruning["structure"] == "diagonal" and 0.4 < pruning["density"] < 0.6
    weights = {n.name: compressed.arrays[n.arrays["weight"]] for n in compressed.nodes if "weight" in n.arrays}
    kept, total = (
        sum(f(weights[name]) * positions for name, positions in {"stem": 16, "branch": 16, "head": 1}.items())
        for f in (np.count_nonzero, np.size)
    )
    # Rounding to integers may bring a kept weight to zero, never a pruned one to life.
    assert kept / total <= pruning["multiply_add_density"] < kept / total + 0.02
    assert report["recipe"]["name"] == "tiny" and report["median_margin"] > 0
    assert set(compressed.ranges) == {compressed.input.name, *(n.name for n in compressed.nodes)}
    assert compressed.output.labels == digits_labels() and compressed.output.post_processing == "argmax"


def digits_labels() -> tuple[str, ...]:
    return tuple("0123456789")


def short(**changes: object) -> Recipe:
    """Too little training for any accuracy, enough to run every step."""
    once = {"epochs": 2}
    return Recipe.from_dict({"name": "short", "network": "digits-mlp", "teacher": once, "train_limit": 320, **changes})


def test_magnitude_pruning_keeps_exactly_its_share() -> None:
    recipe = short(steps=[{"method": "magnitude", "density": 0.1, "minimum": 0.01, "training": {"epochs": 4}}])
    model = compress(None, recipe, quiet=True)
    weights = [model.arrays[n.arrays["weight"]] for n in model.nodes if n.op == "dense"]
    total = sum(w.size for w in weights)
    assert (
        sum(int(np.count_nonzero(w)) for w in weights) == model.metadata["steps"][1]["nonzeros"] == round(0.1 * total)
    )
    assert min(int(np.count_nonzero(w)) for w in weights) >= int(0.01 * total)


def test_the_same_seed_gives_the_same_weights() -> None:
    torch.manual_seed(1)
    first = compress(None, short(), quiet=True)
    torch.manual_seed(2)
    second = compress(None, short(), quiet=True)
    other = compress(None, short(seed=3), quiet=True)
    assert all(np.array_equal(first.arrays[k], second.arrays[k]) for k in first.arrays)
    assert not np.array_equal(first.arrays["fc1.weight"], other.arrays["fc1.weight"])
    assert first.metadata["data"] == "digits[320/360]"


def test_compress_leaves_the_callers_random_state_and_threads() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    compress(None, short(), quiet=True)
    assert torch.equal(torch.rand(1), expected) and torch.get_num_threads() == threads


def test_per_layer_density_and_unknown_layers() -> None:
    layers = {"fc2": 0.25}  # fc1 reads the staggered input: all of its diagonals are one operand
    model = compress(None, short(steps=[{"method": "diagonals", "layers": layers}]), quiet=True)
    density = {
        n.name: np.count_nonzero(model.arrays[n.arrays["weight"]]) / model.arrays[n.arrays["weight"]].size
        for n in model.nodes
        if n.op == "dense"
    }
    assert density["fc2"] == pytest.approx(0.25) and density["fc1"] == 1.0
    with pytest.raises(ModelError, match="cannot prune layers"):
        compress(None, short(steps=[{"method": "diagonals", "layers": {"nope": 0.5}}]), quiet=True)


def test_a_collapsed_layer_stops_the_compression() -> None:
    class Faint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.strong, self.faint = nn.Linear(64, 32), nn.Linear(32, 10)
            nn.init.constant_(self.faint.weight, 1e-9)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.faint(torch.square(self.strong(x.flatten(1))))
            return y

    recipe = Recipe.from_dict({"name": "faint", "steps": [{"method": "magnitude", "density": 0.3, "minimum": 0.0}]})
    with pytest.raises(ModelError, match=r"no weight is left in \['faint.weight'\]"):
        compress(Faint(), recipe, load("digits"), quiet=True)


def test_a_recipe_without_a_network_needs_a_module() -> None:
    with pytest.raises(ModelError, match="names no network"):
        compress(None, Recipe.from_dict({"name": "bare"}), quiet=True)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Flatten(), nn.Linear(64, 10), nn.LayerNorm(10)], "aten.layer_norm"),
        ([nn.Flatten(), nn.Linear(64, 9)], r"yields shape \(9,\), need one logit per label, \(10,\)"),
        ([nn.Conv2d(1, 10, 8)], r"yields shape \(10, 1, 1\)"),
    ],
    ids=["unsupported", "nine-logits", "image"],
)
def test_what_cannot_be_compressed_is_refused_before_it_trains(
    layers: list[nn.Module], message: str, digits: Dataset
) -> None:
    module = nn.Sequential(*layers)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ModelError, match=message):
        compress(module, Recipe.from_dict(BASE), digits, quiet=True)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


class Deep(nn.Module):
    """Five squares: more levels than the smaller rings have."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(5)])
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = torch.square(layer(x))
        y: Tensor = self.head(x)
        return y


def test_diagonals_are_those_of_the_ring_that_the_plan_takes(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def recorded(graph: Graph, degree: int) -> dict[str, np.ndarray]:
        asked.append(degree)
        return packed_classes(graph, degree)

    monkeypatch.setattr(diagonals, "packed_classes", recorded)
    torch.manual_seed(0)
    model = compress(Deep(), DiagonalClasses(0.5), digits, quiet=True)
    assert asked == [compile(model).params.degree] and asked[0] > 8192


def test_augmentation_moves_images_and_keeps_their_values() -> None:
    from model_prep.train import _shifted

    torch.manual_seed(0)
    images = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(40, 1, 1, 1)
    moved = _shifted(images, 1)
    starts = {float(v) for v in moved[:, 0, 4, 4]}
    assert starts == {36.0 + 8 * dy + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    assert torch.equal(_shifted(images, 0), images)
