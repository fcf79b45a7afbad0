"""Export of modules as users write them: what counts is what forward computes, not which layers it is made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from he_runtime.errors import ModelError, Reason
from he_runtime.model import CompressedModel, InputSpec
from he_runtime.reference import forward
from model_prep import export

SEED = 7


class ResidualNet(nn.Module):
    """Functional activations, a residual sum, a module used twice, view, and Python control flow."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 4 * 4, 5)
        self.blocks = blocks
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = 0.25 * x**2 + 0.5 * x + 0.1
        for index in range(self.blocks):
            y = self.shared(x)
            x = x + (torch.square(y) if index % 2 else y * y)
        x = F.avg_pool2d(x, 2)
        if x.shape[1] == 4:
            x = x.view(x.size(0), -1)
        return self.dropout(self.head(x))


class FunctionalMlp(nn.Module):
    """Raw parameters and matmul, no layer module at all."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(6, 8) / 3)
        self.w2 = nn.Parameter(torch.randn(3, 8) / 3)
        self.gain = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = (x @ self.w1 + self.gain) ** 2
        x -= 0.5
        return torch.addmm(torch.ones(3, dtype=x.dtype), x, self.w2.abs().t()).neg() / 2


class Grouped(nn.Module):
    """Strides, groups, dilation, padding="same", global average by mean, batch norm without affine."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2, bias=False)
        self.b = nn.Conv2d(4, 6, 3, dilation=2, padding="same")
        self.norm = nn.BatchNorm2d(6, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.b(self.a(x)).square())
        return (1 - x).mean((2, 3))


class Arithmetic(nn.Module):
    """Products of affine functions of one tensor, and a square of a square."""

    def forward(self, x: Tensor) -> Tensor:
        y = (x + 1) * (2 * x - 3) - x / 4 + x
        return ((y - 0.1) ** 2).flatten(1)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (ResidualNet, (2, 8, 8)),
    "functional-mlp": (FunctionalMlp, (6,)),
    "grouped": (Grouped, (2, 8, 8)),
    "arithmetic": (Arithmetic, (3, 2, 2)),
    "adaptive-pool": (lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten()), (2, 8, 8)),
}


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(SEED)
    factory, shape = CASES[name]
    module = factory().to(dtype)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    return module, torch.randn(3, *shape, dtype=dtype)


def largest_difference(model: CompressedModel, module: nn.Module, x: Tensor) -> float:
    module.eval()
    with torch.no_grad():
        expected = module(x).double().numpy()
    return float(np.abs(forward(model, x.double().numpy()) - expected).max() / max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("folding", [False, True], ids=["plain", "folded"])
@pytest.mark.parametrize("name", CASES)
def test_export_equals_torch_in_double(name: str, folding: bool) -> None:
    module, x = made(name)
    assert largest_difference(export(module, x, folding=folding), module, x) < 1e-9


@pytest.mark.parametrize("name", CASES)
def test_export_equals_torch_in_float(name: str) -> None:
    module, x = made(name, torch.float32)
    assert largest_difference(export(module, x), module, x) < 1e-5


def test_the_batch_size_of_the_example_does_not_matter() -> None:
    module, x = made("residual")
    one, many = export(module, x[:1]), export(module, x)
    assert one.digest == many.digest


def test_a_module_used_twice_shares_its_weights() -> None:
    module, x = made("residual")
    model = export(module, x, folding=False)
    users = [n.name for n in model.nodes if n.arrays.get("weight") == "shared.weight"]
    assert len(users) == 2


def test_arithmetic_with_constants_is_one_quadratic() -> None:
    module, x = made("arithmetic")
    assert [n.op for n in export(module, x).nodes] == ["quadratic", "quadratic", "reshape"]


def test_nodes_are_named_after_the_modules() -> None:
    module, x = made("residual")
    assert {"stem", "shared", "head"} <= {n.name for n in export(module, x).nodes}


def test_export_leaves_the_module_as_it_was() -> None:
    module, x = made("residual")
    module.train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    export(module, x)
    assert module.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_dead_code_is_not_exported() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 2), nn.Linear(4, 300)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x)
            y: Tensor = self.used(x)
            return y

    model = export(Unused(), torch.randn(2, 4))
    assert [n.name for n in model.nodes] == ["used"]
    assert all(values.size <= 8 for values in model.arrays.values())


def test_a_user_module_called_stats_survives_calibration() -> None:
    class Stats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stats = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.stats(x)
            return y

    x = torch.randn(5, 4)
    model = export(Stats(), x, calibration=x.numpy())
    assert model.mean_square("stats") is not None
    assert model.array(model.node("stats"), "weight") is not None


def test_spec_labels_and_calibration_reach_the_artifact() -> None:
    module, x = made("residual")
    raw = (x.numpy() * 0.5) + 0.25
    spec = InputSpec("picture", (2, 8, 8), (0.25, 0.25), (0.5, 0.5))
    model = export(module, x, name="net", input_spec=spec, labels=tuple("abcde"), calibration=raw)
    assert (model.name, model.input.name, model.output.post_processing) == ("net", "picture", "argmax")
    assert (model.input.low, model.input.high) == (pytest.approx(raw.min()), pytest.approx(raw.max()))
    low, high = model.ranges[model.output.node]
    logits = forward(model, x.numpy())
    assert low == pytest.approx(logits.min() * 1.1) and high == pytest.approx(logits.max() * 1.1)


def test_the_artifact_survives_a_round_trip(tmp_path: object) -> None:
    module, x = made("residual")
    model = export(module, x, calibration=x.numpy())
    assert CompressedModel.load(model.save(str(tmp_path))).digest == model.digest


class Lambda(nn.Module):
    """A module from a function, so that each refusal below is one line."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function
        self.norm = nn.BatchNorm2d(1, track_running_stats=False)

    def forward(self, x: Tensor) -> object:
        return self.function(x)


REFUSED: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "relu": (lambda x: F.relu(x), "compress"),
    "max-pool": (lambda x: F.max_pool2d(x, 2), "avg_pool2d"),
    "cube": (lambda x: x**3, r"x\*\*2"),
    "product": (lambda x: x.flatten(1)[:, :4] * x.flatten(1)[:, 4:8], "slice"),
    "two-tensors": (lambda x: F.avg_pool2d(x, 2) * x, "broadcasts"),
    "division": (lambda x: 1 / x, "division by a constant"),
    "batch-mixed": (lambda x: x.reshape(-1, 16), "mixes the samples"),
    "batch-mean": (lambda x: x - x.mean(0), "mixes the samples"),
    "batch-fixed": (lambda x: x.view(2, 64), "size of the batch"),
    "transpose": (lambda x: x.transpose(2, 3), "moves axes"),
    "positions": (lambda x: x * torch.arange(8.0), "one constant per channel"),
    "broadcast": (lambda x: x + F.avg_pool2d(x, 8), "equal shape"),
    "data-dependent": (lambda x: x if x.sum() > 0 else -x, "control flow"),
    "two-outputs": (lambda x: (x, x), "one tensor"),
    "constant": (lambda x: torch.ones(2), "one tensor that depends on the input"),
    "linear-on-image": (lambda x: F.linear(x, torch.ones(3, 8)), "flatten"),
    "padded-average": (lambda x: F.avg_pool2d(x, 3, padding=1, count_include_pad=False), "count_include_pad"),
    "ceil-mode": (lambda x: F.avg_pool2d(x, 3, stride=2, ceil_mode=True), "ceil_mode"),
    "uneven-adaptive": (lambda x: F.adaptive_avg_pool2d(x, 3), "divides the image"),
    "even-same": (lambda x: F.conv2d(x, torch.ones(1, 1, 2, 2), padding="same"), "odd kernel"),
    "active-dropout": (lambda x: F.dropout(x, 0.5, training=True), "dropout"),
    "crash": (lambda x: x.no_such_method(), "torch.export failed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_unsupported_is_refused_with_advice(name: str) -> None:
    function, advice = REFUSED[name]
    with pytest.raises(ModelError, match=advice) as caught:
        export(Lambda(function), torch.randn(2, 1, 8, 8))
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED
    assert "\n" not in caught.value.message


def test_a_refusal_names_the_operation_and_the_source_line() -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(x, 2)  # the line that the message must name

    line = Pooled.forward.__code__.co_firstlineno + 1
    with pytest.raises(ModelError) as caught:
        export(Pooled(), torch.randn(2, 1, 8, 8))
    assert "aten.max_pool2d" in caught.value.message
    assert f"test_capture.py:{line} `return F.max_pool2d(x, 2)" in caught.value.message


def test_batch_statistics_are_refused() -> None:
    module = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False))
    with pytest.raises(ModelError, match=r"running statistics|homomorphic form"):
        export(module, torch.randn(2, 1, 4, 4))


@pytest.mark.parametrize("example", [torch.ones(4), torch.ones(2, 4, dtype=torch.int64)], ids=["no-batch", "integers"])
def test_a_bad_example_is_refused(example: Tensor) -> None:
    with pytest.raises(ModelError, match="batch"):
        export(nn.Linear(4, 2), example)


def test_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            assert y is not None
            return x + y

    with pytest.raises(ModelError):
        export(Two(), torch.randn(2, 4))
