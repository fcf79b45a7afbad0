"""Networks as their authors write them: each exports to a graph equal to torch, or is refused with line and advice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from he_runtime.errors import ModelError, Reason
from he_runtime.model import InputSpec
from he_runtime.reference import forward
from model_prep import export
from model_prep.capture.capture import capture
from model_prep.folding.folding import fold
from tests.model_prep.user_modules import GOOD


def randomize_norms(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)


@pytest.mark.parametrize("name", GOOD)
def test_a_users_module_equals_torch(name: str) -> None:
    torch.manual_seed(3)
    factory, shape = GOOD[name]
    module = factory().double()
    randomize_norms(module)
    x = torch.randn(3, *shape, dtype=torch.float64)
    graph = capture(module, x)
    with torch.no_grad():
        found = module.eval()(x.clone())
    expected = (found["logits"] if isinstance(found, dict) else found).numpy()
    for form in (graph, fold(graph)):
        result = forward(form.to_model(name, InputSpec("", shape)), x.numpy())
        assert result.shape == expected.shape
        assert np.abs(result - expected).max() <= 1e-9 * max(1.0, np.abs(expected).max())


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


REFUSED: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "stack": (lambda x: torch.stack((x, x * x), 1), "aten.stack.*along a new axis"),
    "cat-axis": (lambda x: torch.cat((x.view(-1, 2, 2), x.view(-1, 2, 2)), 2), "along axis 2; need torch.cat"),
    "slice": (lambda x: x[:, :2], "takes a part"),
    "chunk": (lambda x: x.chunk(2, 1)[0], "takes a part"),
    "flip": (lambda x: x.flip(1), "moves axes or elements"),
    "repeat": (lambda x: x.repeat(1, 2), "copies elements"),
    "softmax": (lambda x: F.log_softmax(x, dim=1), "post_processing='softmax'"),
    "layer-norm": (lambda x: F.layer_norm(x, (4,)), "batch norm with running statistics"),
    "clamp": (lambda x: x.clamp(min=0), "F.relu"),
    "where": (lambda x: torch.where(x > 0, x, 0), "comparison"),
    "einsum": (lambda x: torch.einsum("bi,oi->bo", x, torch.ones(3, 4)), "F.linear"),
    "pad": (lambda x: F.pad(x, (1, 1)), "padding=... of the convolution"),
    "sum": (lambda x: x.sum(1), r"x.sum\(\(2, 3\)\)"),
    "mean": (lambda x: x.mean(1), r"x.mean\(\(2, 3\)\)"),
    "default-dropout": (lambda x: F.dropout(x), "training=self.training"),
    "like": (lambda x: x + torch.ones_like(x), "plain number"),
    "product": (lambda x: x.view(-1, 1, 4) * x.view(-1, 2, 2), "broadcasts"),
    "matrices": (lambda x: x.view(-1, 1, 2, 2) @ x.view(-1, 2, 2, 1), "matrix product of"),
    "random": (lambda x: x + torch.randn(4), "random"),
    "batch-shaped": (lambda x: x + torch.zeros(x.size(0), 1), "size of the batch"),
    "batch-factor": (lambda x: x * x.size(0), "size of the batch"),
    "addmm": (lambda x: torch.addmm(torch.ones(2, 3), x, torch.ones(4, 3)), "one size of the batch only"),
    "integers": (lambda x: x.long().float(), "rounds to torch.int64"),
    "zero-division": (lambda x: x / 0, "divides by zero"),
    "infinite": (lambda x: x * float("inf"), "finite constants"),
    "data-dependent": (lambda x: x if x.sum() > 0 else -x, "control flow"),
    "input-unchanged": (lambda x: x, "returns its input"),
    "nothing": (lambda x: None, "one tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_gives_line_and_advice(name: str) -> None:
    function, advice = REFUSED[name]
    with pytest.raises(ModelError, match=advice) as caught:
        export(Lambda(function), torch.randn(2, 4))
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED
    assert "\n" not in caught.value.message and "; need " in caught.value.message
    whole_forward = name in ("input-unchanged", "nothing")
    assert whole_forward or "test_user_modules.py:" in caught.value.message


def test_a_failed_trace_names_the_users_line(capfd: pytest.CaptureFixture[str]) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.mean() > 0:  # the line that the message must name
                return x
            return -x

    line = Branching.forward.__code__.co_firstlineno + 1
    with pytest.raises(ModelError, match=rf"Branching at .*test_user_modules.py:{line} `if x.mean\(\) > 0"):
        export(Branching(), torch.randn(2, 4))
    printed = capfd.readouterr()
    assert not printed.out and not printed.err  # torch's own report does not reach the terminal


def test_a_layer_of_a_plain_sequential_is_named_by_its_path() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Softmax(dim=1)))
    with pytest.raises(ModelError, match=r"\(aten.softmax.int\) in module '1.0'"):
        export(module, torch.randn(2, 4))


def test_a_changed_buffer_is_refused_by_name() -> None:
    class Counter(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    with pytest.raises(ModelError, match=r"changes its buffers \['calls'\]"):
        export(Counter(), torch.randn(2, 4))


def test_each_layer_keeps_its_own_mode() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    module[1].eval()  # a frozen batch norm in a network that trains
    export(module, torch.randn(2, 4))
    assert [layer.training for layer in module.modules()] == [True, True, False]


def test_an_example_from_numpy_takes_the_modules_precision() -> None:
    model = export(nn.Linear(4, 2), np.random.default_rng(0).normal(size=(3, 4)))
    assert model.arrays["weight"].dtype == np.float32


@pytest.mark.parametrize(
    "layer", [nn.ReLU6(), nn.GELU(), nn.Sigmoid(), nn.Tanh(), nn.Hardswish(), nn.LeakyReLU(0.2), nn.ELU(), nn.SELU()]
)
def test_an_activation_is_captured_for_compress_and_refused_by_export(layer: nn.Module) -> None:
    module, x = nn.Sequential(nn.Linear(4, 4), layer), torch.randn(2, 4)
    assert [n.op for n in capture(module, x).nodes] == ["dense", "activation"]
    with pytest.raises(ModelError, match=r"is not a polynomial.*`compress`, which replaces it"):
        export(module, x)
