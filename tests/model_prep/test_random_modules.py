"""Random torch modules: what they export to is planned, and the plan on slots gives what torch gives."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from random import Random

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from he_runtime import run_clear
from he_runtime.model import OPS
from model_prep import export
from model_prep.graph import Graph
from model_prep.trainable import TrainableGraph
from tests.he_runtime.random_networks import planned

DEGREE = 1024  # a test ring: small rings make several ciphertexts of small tensors
SAMPLES, LARGE, MAX_SIZE = 3, 4.0, 400
Step = Callable[..., Tensor]


class RandomModule(nn.Module):
    """Grows layer by layer on `tensors`, all on the same samples; forward repeats the steps."""

    def __init__(self, seed: int, count: int) -> None:
        super().__init__()
        self.random = r = Random(seed)
        torch.manual_seed(seed)
        image = r.random() < 0.7
        shape = (r.randint(1, 4), r.randint(3, 7), r.randint(3, 7)) if image else (r.randint(2, 24),)
        self.tensors = [torch.rand(SAMPLES, *shape, dtype=torch.float64) * 2 - 1]
        self.steps: list[tuple[Step, tuple[int, ...]]] = []
        self.layers = nn.ModuleList()
        for _ in range(count):
            self.grow(len(self.tensors) - 1 if r.random() < 0.75 else r.randrange(len(self.tensors)))
        self.linear(self.flatten(len(self.tensors) - 1))

    def forward(self, x: Tensor) -> Tensor:
        tensors = [x]
        for step, sources in self.steps:
            tensors.append(step(*(tensors[i] for i in sources)))
        return tensors[-1]

    def put(self, step: Step, *sources: int) -> int:
        if isinstance(step, nn.Module):
            step = step.double().eval()
            self.layers.append(step)
        with torch.no_grad():
            self.tensors.append(step(*(self.tensors[i] for i in sources)))
        self.steps.append((step, sources))
        return len(self.tensors) - 1

    def grow(self, source: int) -> None:
        kinds = _IMAGE if self.tensors[source].ndim == 4 else _VECTOR
        if float(self.tensors[source].abs().max()) > LARGE:
            kinds = (RandomModule.norm,)
        self.random.choice(kinds)(self, source)

    def joinable(self, source: int) -> int:
        """A tensor that agrees with this one in all axes but the channels; perhaps itself."""
        shapes = [t.shape[2:] for t in self.tensors]
        fits = [i for i, shape in enumerate(shapes) if shape == shapes[source]]
        return self.random.choice(fits[-3:])

    def other(self, source: int) -> int:
        """A tensor of the same shape: another one, or a linear map of this one."""
        shape = self.tensors[source].shape
        fits = [i for i, t in enumerate(self.tensors) if t.shape == shape and i != source]
        if fits and self.random.random() < 0.5:
            return self.random.choice(fits)
        return self.put(nn.Conv2d(shape[1], shape[1], 1) if len(shape) == 4 else nn.Linear(shape[1], shape[1]), source)

    def conv(self, source: int) -> int:
        r, (channels, *size) = self.random, self.tensors[source].shape[1:]
        groups = r.choice([g for g in range(1, channels + 1) if channels % g == 0])
        outputs = groups * r.randint(1, 2 if channels * math.prod(size) < MAX_SIZE else 1)
        kernel = [r.randint(1, min(3, n)) for n in size]
        dilation = [r.randint(1, 2) if 2 * (k - 1) < n else 1 for k, n in zip(kernel, size, strict=True)]
        stride, padding = [r.randint(1, 2) for _ in size], [r.randrange(k) for k in kernel]
        bias = r.random() < 0.7
        return self.put(
            nn.Conv2d(channels, outputs, kernel, stride, padding, dilation, groups, bias),  # type: ignore[arg-type]
            source,
        )

    def norm(self, source: int) -> int:
        """With statistics of the wrong batch, as after training; large values come out small."""
        x = self.tensors[source]
        layer: nn.BatchNorm1d | nn.BatchNorm2d
        layer = nn.BatchNorm2d(x.shape[1]) if x.ndim == 4 else nn.BatchNorm1d(x.shape[1])
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2.0).mul_(max(1.0, float(x.abs().max())) ** 2)
        nn.init.uniform_(layer.weight, -1.0, 1.0)
        nn.init.uniform_(layer.bias, -0.5, 0.5)
        return self.put(layer, source)

    def pool(self, source: int) -> int:
        r, (height, width) = self.random, self.tensors[source].shape[2:]
        kernel = (r.randint(1, min(3, height)), r.randint(1, min(3, width)))
        stride = None if r.random() < 0.5 else tuple(r.randint(1, k) for k in kernel)
        padding = tuple(r.randint(0, k // 2) for k in kernel)
        return self.put(nn.AvgPool2d(kernel, stride, padding), source)  # type: ignore[arg-type]

    def adaptive(self, source: int) -> int:
        height, width = self.tensors[source].shape[2:]
        target = [self.random.choice([m for m in range(1, n + 1) if n % m == 0]) for n in (height, width)]
        return self.put(nn.AdaptiveAvgPool2d((target[0], target[1])), source)

    def mean(self, source: int) -> int:
        return self.put(lambda x: x.mean((2, 3)), source)

    def flatten(self, source: int) -> int:
        return self.put(nn.Flatten(), source)

    def linear(self, source: int) -> int:
        outputs = self.random.randint(1, 20)
        return self.put(nn.Linear(self.tensors[source].shape[1], outputs, self.random.random() < 0.7), source)

    def unflatten(self, source: int) -> int:
        """A vector as an image."""
        size = self.tensors[source].shape[1]
        channels = self.random.choice([c for c in range(1, size + 1) if size % c == 0])
        return self.put(nn.Unflatten(1, (channels, size // channels, 1)), source)

    def square(self, source: int) -> int:
        return self.put(lambda x: x * x, source)

    def quadratic(self, source: int) -> int:
        a, b, c = (self.random.uniform(-0.5, 0.5) for _ in range(3))
        return self.put(lambda x: a * x**2 + b * x + c, source)

    def add(self, source: int) -> int:
        factor = self.random.choice([1.0, -0.5, 0.3])
        return self.put(lambda x, y: x + factor * y, source, self.other(source))

    def multiply(self, source: int) -> int:
        return self.put(lambda x, y: (x + 0.1) * y, source, self.other(source))

    def concat(self, source: int) -> int:
        if self.tensors[source][0].numel() > MAX_SIZE // 2:
            return self.square(source)
        return self.put(lambda *xs: torch.cat(xs, 1), source, self.joinable(source), self.joinable(source))

    def matmul(self, source: int) -> int:
        """(heads, m, k) by (heads, k, n), the right side a linear map of the left one's tensor."""
        r = self.random
        left = self.linear(self.flatten(source))
        size = self.tensors[left].shape[1]
        heads = r.choice([h for h in (1, 2, 3) if size % h == 0])
        inner = r.choice([k for k in range(1, size // heads + 1) if size // heads % k == 0])
        rows, columns = size // heads // inner, r.randint(1, 4)
        right = self.put(nn.Linear(size, heads * inner * columns), left)

        def product(x: Tensor, y: Tensor) -> Tensor:
            z = x.reshape(-1, heads, rows, inner) @ y.reshape(-1, heads, inner, columns)
            return z.flatten(1)

        return self.put(product, left, right)


_Grow = Callable[[RandomModule, int], int]
_ANY: tuple[_Grow, ...] = (
    RandomModule.norm,
    RandomModule.square,
    RandomModule.quadratic,
    RandomModule.add,
    RandomModule.multiply,
    RandomModule.concat,
    RandomModule.matmul,
)
_IMAGE: tuple[_Grow, ...] = (
    *_ANY,
    *[RandomModule.conv] * 4,
    RandomModule.pool,
    RandomModule.adaptive,
    RandomModule.mean,
    RandomModule.flatten,
)
_VECTOR: tuple[_Grow, ...] = (*_ANY, *[RandomModule.linear] * 2, RandomModule.unflatten)


def test_the_plan_of_a_random_module_equals_torch() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(seed=st.integers(0, 2**32), count=st.integers(1, 8), batch=st.sampled_from([1, 8, 64, DEGREE // 2]))
    def every_module(seed: int, count: int, batch: int) -> None:
        module = RandomModule(seed, count)
        x = module.tensors[0]
        model = export(module, x)
        with torch.no_grad():
            expected = module(x).numpy()
        largest = max(1.0, *(float(t.abs().max()) for t in module.tensors))
        found = run_clear(planned(model, DEGREE, batch), x.numpy())
        assert found.shape == expected.shape
        assert abs(found - expected).max() <= 1e-9 * largest
        trained = TrainableGraph(Graph.from_model(model))(x.float()).detach().numpy()
        assert abs(trained - expected).max() <= 1e-4 * largest, "what is trained before it is planned"
        seen.update(node.op for node in model.nodes)

    every_module()
    assert set(seen) == set(OPS) - {"polynomial"}, "torch has no polynomials of higher degree but powers of powers"
