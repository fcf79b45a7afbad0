"""Random small graphs over every op of the model vocabulary, and their plans without the search for the best chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import numpy as np
import numpy.typing as npt

from he_runtime.cost import load_default
from he_runtime.lower.constants import check_output, fold_constants
from he_runtime.lower.costs import Costs
from he_runtime.lower.emission import VectorPool
from he_runtime.lower.emit import Program, Scales, emit
from he_runtime.lower.levels import stage_levels
from he_runtime.lower.packing import choose_packing
from he_runtime.lower.stages import build_stages
from he_runtime.model import CompressedModel, InputSpec, OutputSpec
from he_runtime.params import CkksParams, find_primes
from he_runtime.plan import Plan, Port, verify
from he_runtime.reference import calibrate, forward_all
from tests.he_runtime.networks import Builder

__all__ = ["RandomNetwork", "planned"]

Floats = npt.NDArray[np.float64]
Shape = tuple[int, ...]
LARGE = 4.0  # beyond it the next layer on a tensor makes values smaller, so that an absolute error means something
MAX_SIZE = 400


def planned(model: CompressedModel, degree: int, batch: int) -> Plan:
    """The plan on one chain of long primes. DoesNotFit as `compile` raises it."""
    slots = degree // 2 // batch
    stages, constants = fold_constants(build_stages(model, slots))
    levels, source, target = stage_levels(stages), model.input, model.output.node
    costs = Costs(load_default("tenseal"), degree)
    packing = choose_packing(stages, source.name, source.shape, slots, levels, costs, 4096)
    check_output(target, constants, packing.layouts[target])
    primes = find_primes(degree, [58.0, 58.0, *[54.0] * max(levels.values())])
    params = CkksParams(degree, tuple(primes[1:]), (primes[0],), insecure=True)
    program = Program(stages, constants, packing, source.name, batch)
    low, layers = emit(program, params, Scales(2.0**30, 2.0**14), {}, VectorPool(), {})
    ports = [
        Port(source.name, source.shape, tuple(low.tensors[source.name].values()), packing.input_layout.slot_map),
        Port(target, model.shape_of(target), tuple(low.tensors[target].values()), packing.layouts[target].slot_map),
    ]
    return verify(
        Plan(
            model_name=model.name,
            model_digest="",
            params=params,
            ops=tuple(low.emission.ops),
            values=tuple(low.emission.values),
            vectors=tuple(low.emission.pool.vectors),
            plaintexts=tuple(low.emission.plaintexts),
            inputs=(ports[0],),
            outputs=(ports[1],),
            layers=layers,
            batch=batch,
        )
    )


class RandomNetwork:
    """Grows layer by layer, mostly on the last tensor and now and then on an earlier one.

    `values` holds every tensor on `samples`: polynomials get the interval that their input covers, and what has become
    large is made smaller. `depth` bounds the levels below the input. With `calm` there are no products of products: the
    error prediction is a mean, which the heavy tails of those leave.
    """

    def __init__(self, seed: int, layers: int, max_depth: int = 16, calm: bool = False, samples: int = 3) -> None:
        self.random, self.max_depth = Random(seed), max_depth
        self.max_degree = 4 if calm else 15
        r = self.random
        self.shape: Shape = (r.randint(1, 4), r.randint(1, 7), r.randint(1, 7))
        if r.random() < 0.4:
            self.shape = (r.randint(1, 24),)
        self.builder = Builder(self.shape, seed)
        self.samples: Floats = self.builder.inputs(samples)
        self.values: dict[str, Floats] = {"x": self.samples}
        self.depth = {"x": 0}
        while len(self.values) <= layers and max(self.depth.values()) < max_depth:
            names = list(self.values)
            source = names[-1] if r.random() < 0.75 else r.choice(names)
            self.layer(source)
        if r.random() < 0.7 or calm:
            self.dense(self.flatten(list(self.values)[-1]), 3, density=1.0)

    def layer(self, source: str) -> str:
        kinds = [*_ANY, *(_IMAGE if len(self.of(source)) == 3 else _OTHER)]
        if np.abs(self.values[source]).max() > LARGE:
            kinds = [k for k in kinds if k in _SHRINKING]
        return self.random.choice(kinds)(self, source)

    def of(self, name: str) -> Shape:
        """The shape of a tensor."""
        return self.values[name].shape[1:]

    def put(self, op: str, shape: Shape, *inputs: str, levels: int = 0, attrs: object = None, **arrays: object) -> str:
        name = self.builder.add(op, shape, attrs, inputs, **arrays)  # type: ignore[arg-type]
        self.depth[name] = levels + max(self.depth[i] for i in inputs)
        self.values[name] = forward_all(self.model(), self.samples)[name]
        return name

    def model(self, name: str = "random") -> CompressedModel:
        b = self.builder
        return CompressedModel(name, InputSpec("x", self.shape), OutputSpec(b.last), tuple(b.nodes), b.arrays)

    def calibrated(self, name: str) -> CompressedModel:
        return calibrate(self.model(name), self.builder.inputs(64))

    def weights(self, source: str, shape: Shape, density: float | None = None) -> Floats:
        """Random weights (out, ...), perhaps sparse or none, that keep values about as large as they are."""
        rng = self.builder.rng
        density = self.random.choice([1.0] * 5 + [0.5] * 3 + [0.2, 0.1, 0.0]) if density is None else density
        size = max(1.0, float(np.abs(self.values[source]).max()))
        return rng.normal(size=shape) / math.sqrt(math.prod(shape[1:])) / size * (rng.random(shape) < density)

    def bias(self, count: int) -> dict[str, Floats]:
        return {"bias": self.builder.rng.normal(size=count) * 0.3} if self.random.random() < 0.7 else {}

    def flatten(self, source: str) -> str:
        return self.put("reshape", (self.values[source][0].size,), source)

    def reshape(self, source: str) -> str:
        """Any factors of the size."""
        shape, left = [], self.values[source][0].size
        for _ in range(self.random.randint(0, 2)):
            shape.append(self.random.choice([n for n in range(1, left + 1) if left % n == 0]))
            left //= shape[-1]
        return self.put("reshape", (*shape, left), source)

    def dense(self, source: str, outputs: int = 0, density: float | None = None) -> str:
        """On the last axis, whatever comes before it."""
        *heads, inputs = self.of(source)
        most = max(1, min(20, MAX_SIZE // math.prod(heads)))
        outputs = outputs or self.random.randint(1, most)
        weight = self.weights(source, (outputs, inputs), density)
        return self.put("dense", (*heads, outputs), source, levels=1, weight=weight, **self.bias(outputs))

    def conv(self, source: str) -> str:
        r, (channels, *size) = self.random, self.of(source)
        groups = r.choice([g for g in range(1, channels + 1) if channels % g == 0])
        outputs = groups * r.randint(1, 2)
        if outputs * math.prod(size) > MAX_SIZE:
            outputs = groups
        stride, dilation, kernel, padding = ([r.randint(1, 2), r.randint(1, 3 - k)] for k in (1, 1, 0, 0))
        padding = [p - 1 for p in padding]
        spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        if any(n + 2 * p < s for n, p, s in zip(size, padding, spans, strict=True)):
            kernel, spans = [1, 1], [1, 1]
        made = [(n + 2 * p - s) // t + 1 for n, p, s, t in zip(size, padding, spans, stride, strict=True)]
        shape = (outputs, channels // groups, *kernel)
        weight = self.weights(source, shape)
        attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return self.put("conv2d", (outputs, *made), source, levels=1, attrs=attrs, weight=weight, **self.bias(outputs))

    def pool(self, source: str) -> str:
        """Of the whole image, of its parts, or of parts that overlap."""
        r, (channels, *size) = self.random, self.of(source)
        kernel = size if r.random() < 0.3 else [r.randint(1, min(3, n)) for n in size]
        stride = kernel if r.random() < 0.5 else [r.randint(1, k) for k in kernel]
        padding = [r.randint(0, k // 2) for k in kernel]
        made = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)]
        attrs = {"kernel": kernel, "stride": stride, "padding": padding}
        return self.put("avg_pool2d", (channels, *made), source, levels=1, attrs=attrs)

    def per_channel(self, source: str, low: float, high: float) -> Floats:
        shape = () if self.random.random() < 0.3 else (self.of(source)[0],)
        return np.asarray(self.builder.rng.uniform(low, high, shape))

    def affine(self, source: str) -> str:
        scale = self.per_channel(source, -1, 1) / max(1.0, float(np.abs(self.values[source]).max()))
        return self.put(
            "affine", self.of(source), source, levels=1, scale=scale, shift=self.per_channel(source, -0.5, 0.5)
        )

    def square(self, source: str) -> str:
        return self.put("quadratic", self.of(source), source, levels=1, a=1.0, b=0.0, c=0.0)

    def quadratic(self, source: str) -> str:
        coefficients = {role: self.per_channel(source, -0.5, 0.5) for role in "abc"}
        if self.random.random() < 0.3:  # some channels are affine, some constant
            coefficients = {k: v * (self.builder.rng.random(v.shape) < 0.5) for k, v in coefficients.items()}
        return self.put("quadratic", self.of(source), source, levels=1, **coefficients)

    def polynomial(self, source: str) -> str:
        """Any degree, per layer or per channel, sparse or odd or even, on one interval or one per channel."""
        r, rng, shape = self.random, self.builder.rng, self.of(source)
        degree = r.randint(0, self.max_degree)
        rows = (shape[0], degree + 1) if r.random() < 0.5 else (degree + 1,)
        kept = rng.random(rows) < 0.7 if r.random() < 0.7 else np.arange(degree + 1) % 2 == r.randint(0, 1)
        coefficients = rng.normal(size=rows) * kept / (degree + 1)
        values = self.values[source]
        low, high = float(values.min()) - 0.1, float(values.max()) + 0.2
        attrs: dict[str, object] = {"basis": "chebyshev", "low": low, "high": high}
        if abs(low) < 2 and high < 2 and r.random() < 0.3:
            attrs |= {"low": -2.0, "high": 2.0}
        elif r.random() < 0.3:
            attrs |= {"low": [low - 0.1 * (k % 3) for k in range(shape[0])]}
        elif degree < 6 and r.random() < 0.3:
            attrs["basis"] = "power"
            coefficients = coefficients / max(1.0, abs(low), high) ** np.arange(degree + 1)
        levels = 1 + max(1, (degree - 1).bit_length())
        return self.put("polynomial", shape, source, levels=levels, attrs=attrs, coefficients=coefficients)

    def alike(self, source: str) -> str:
        """Another tensor of the same shape, or the same."""
        shape = self.of(source)
        return self.random.choice([n for n in self.values if self.of(n) == shape][-3:])

    def add(self, source: str) -> str:
        return self.put("add", self.of(source), source, self.alike(source))

    def multiply(self, source: str) -> str:
        return self.put("multiply", self.of(source), source, self.alike(source), levels=1)

    def concat(self, source: str) -> str:
        shape = self.of(source)
        others = [n for n in self.values if len(self.of(n)) == len(shape) and self.of(n)[1:] == shape[1:]]
        names = [source, *self.random.choices(others, k=self.random.randint(0, 2))]
        while sum(self.values[n][0].size for n in names) > MAX_SIZE and len(names) > 1:
            names.pop()
        self.random.shuffle(names)
        return self.put("concat", (sum(self.of(n)[0] for n in names), *shape[1:]), *names, levels=1)

    def matmul(self, source: str) -> str:
        """(..., m, k) x (..., k, n) of a tensor with itself, with another, or with a linear map of itself."""
        r = self.random
        if self.values[source][0].size > 36:
            source = self.dense(self.flatten(source), r.randint(2, 24))
        size = self.values[source][0].size
        heads = r.choice([h for h in (1, 2, 3) if size % h == 0])
        inner = r.choice([k for k in range(1, size // heads + 1) if size // heads % k == 0])
        rows, columns = size // heads // inner, r.randint(1, 4)
        fits = [n for n, v in self.values.items() if v[0].size % (heads * inner) == 0 and v[0].size <= 36]
        if fits and r.random() < 0.6:
            partner = r.choice(fits)
            columns = self.values[partner][0].size // heads // inner
        else:
            partner = self.dense(self.flatten(source), heads * inner * columns)
        flips = {"transpose_left": r.random() < 0.5, "transpose_right": r.random() < 0.5}
        sides = [(rows, inner), (inner, columns)]
        shaped = [
            self.put("reshape", (*([heads] if heads > 1 else []), *(side[::-1] if flip else side)), name)
            for name, side, flip in zip((source, partner), sides, flips.values(), strict=True)
        ]
        return self.put("matmul", (*self.of(shaped[0])[:-2], rows, columns), *shaped, levels=3, attrs=flips)


_Layer = Callable[[RandomNetwork, str], str]
_ANY: tuple[_Layer, ...] = (
    RandomNetwork.affine,
    RandomNetwork.square,
    RandomNetwork.quadratic,
    RandomNetwork.polynomial,
    RandomNetwork.add,
    RandomNetwork.multiply,
    RandomNetwork.concat,
    RandomNetwork.matmul,
    RandomNetwork.reshape,
)
_IMAGE: tuple[_Layer, ...] = (*[RandomNetwork.conv] * 4, RandomNetwork.pool, RandomNetwork.pool, RandomNetwork.flatten)
_OTHER: tuple[_Layer, ...] = (*[RandomNetwork.dense] * 3,)
_SHRINKING = (RandomNetwork.affine, RandomNetwork.polynomial, RandomNetwork.conv, RandomNetwork.dense)
