"""Polynomials of any degree: structure, scales, plans, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import chebyshev

from he_runtime import Executor, Plan, compile, run_clear
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.chebyshev import chebyshev_coefficients, evaluate
from he_runtime.errors import ModelError
from he_runtime.lower.levels import stage_levels
from he_runtime.lower.polynomial import Leaf, Structure, Sum, structure
from he_runtime.lower.polynomial_scales import polynomial_scales
from he_runtime.lower.stages import build_stages
from he_runtime.model import CompressedModel, Node
from he_runtime.params import CkksParams, find_primes
from he_runtime.plan.counts import layer_counts, leaf_totals
from he_runtime.reference import forward
from he_runtime.ring import EvaluationKeys
from tests.he_runtime.networks import Builder

ATTRS: dict[str, Any] = {"basis": "chebyshev", "low": -3.0, "high": 2.0}


def node(shape: tuple[int, ...], **attrs: Any) -> Node:
    return Node("p", "polynomial", ("x",), shape, {**ATTRS, **attrs})


def swish(degree: int) -> np.ndarray:
    """Coefficients of x * sigmoid(3x) on [-3, 2], none of them zero."""
    return np.asarray(chebyshev.chebinterpolate(lambda u: (2.5 * u - 0.5) / (1 + np.exp(1.5 - 7.5 * u)), degree))


def value(part: Leaf, powers: dict[int, np.ndarray]) -> np.ndarray:
    """What a structure computes, from its own products."""
    if isinstance(part, Sum):
        return sum((value(p, powers) * powers[giant] for p, giant in part.products), value(part.rest, powers))
    return sum((g * (powers[k] if k else 1.0) for k, g in part.terms.items()), np.zeros_like(powers[1]))


def run_structure(found: Structure, v: np.ndarray) -> np.ndarray:
    powers = {1: v}
    for k, p in found.powers.items():
        powers[k] = powers[p.left] * powers[p.right] - (powers[p.difference] if p.difference else 2.0)
    return value(found.top, powers)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    degree=st.integers(2, 90),
    parity=st.sampled_from(["all", "odd", "even", "sparse"]),
    seed=st.integers(0, 2**16),
)
def test_a_structure_computes_the_polynomial_at_the_least_depth(degree: int, parity: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    c = rng.normal(size=(degree + 1, 1))
    if parity == "sparse":
        c *= rng.random(c.shape) < 0.4
    elif parity != "all":
        c[int(parity == "odd") + 1 if parity == "odd" else 1 :: 2] = 0
        c[0] = 0 if parity == "odd" else c[0]
    c[degree] = 1.0
    found = structure(c)
    v = np.linspace(-2, 2, 50)
    np.testing.assert_allclose(run_structure(found, v), chebyshev.chebval(v / 2, c[:, 0]), atol=1e-9 * degree)
    assert found.depth == math.ceil(math.log2(degree)) <= math.ceil(math.log2(degree + 1))
    # Full polynomials: see below. With zeros, relinearizations are saved at the price of a product.
    assert found.products <= math.sqrt(2 * degree) + math.log2(degree) + 3
    assert found.relinearizations <= found.products
    assert all(found.heights[k] >= math.ceil(math.log2(k)) for k in found.heights)


@pytest.mark.parametrize(("degree", "products"), [(2, 1), (3, 2), (4, 2), (6, 3), (8, 4), (15, 7), (31, 12), (63, 16)])
def test_products_of_full_polynomials(degree: int, products: int) -> None:
    assert structure(swish(degree)[:, None]).products == products


@settings(max_examples=40, deadline=None)
@given(degree=st.integers(3, 40), delta=st.integers(24, 36), seed=st.integers(0, 99))
def test_scales_close_exactly(degree: int, delta: int, seed: int) -> None:
    """Every product of a part and a giant has the scale that the rescale brings to what the part above wants."""
    found = structure(np.random.default_rng(seed).normal(size=(degree + 1, 1)))
    primes = find_primes(16384, [55.0, 52.0, *[55.0] * found.depth])
    params = CkksParams(16384, tuple(primes[1:]), (primes[0],), insecure=True)
    scales = polynomial_scales(found, params, found.depth, 2.0**delta)
    assert scales is not None and scales.parts[()] == 2.0**delta
    for k, power in found.powers.items():
        prime = params.primes[found.depth - power.height + 1]
        assert math.isclose(scales.powers[k] * prime, scales.powers[power.left] * scales.powers[power.right])

    def check(part: Leaf, height: int, path: tuple[int, ...]) -> None:
        for index, (inner, giant) in enumerate(part.products if isinstance(part, Sum) else ()):
            product = scales.parts[(*path, index)] * scales.powers[giant]
            assert math.isclose(product, scales.parts[path] * params.primes[found.depth - height])
            check(inner, height - 1, (*path, index))

    check(found.top, found.depth - 1, ())


@settings(max_examples=40, deadline=None)
@given(
    degree=st.integers(0, 9),
    channels=st.booleans(),
    low=st.floats(-4, 1),
    width=st.floats(0.5, 6),
    seed=st.integers(0, 2**16),
)
def test_the_power_basis_converts(degree: int, channels: bool, low: float, width: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    c = rng.normal(size=(3, degree + 1) if channels else degree + 1)
    power = node((3, 2), basis="power", low=low, high=low + width)
    x = rng.uniform(low, low + width, size=(5, 3, 2))
    converted = chebyshev_coefficients(power, c)
    expected = evaluate(power, c, x)
    got = evaluate(node((3, 2), low=low, high=low + width), converted.T if channels else converted[:, 0], x)
    np.testing.assert_allclose(got, expected, atol=1e-9 * max(1.0, float(np.abs(expected).max())))


def after_linear(degree: int) -> Builder:
    """The map of the interval goes into the convolution before it; one polynomial per channel."""
    b = Builder((2, 4, 4))
    shape = b.conv((2, 4, 4), 3, 3, 1, 1)
    scales = b.rng.uniform(0.5, 1.5, size=(3, 1))
    scales[1, :] = 0.3
    b.add(
        "polynomial",
        shape,
        {**ATTRS, "low": [-3.0, -4.0, -3.5], "high": [3.0, 3.0, 5.0]},
        coefficients=scales * swish(degree),
    )
    b.add("reshape", (48,))
    b.dense(48, 4)
    return b


def after_square(degree: int) -> Builder:
    """No linear layer before it: the stage maps the interval itself, at no level. Five elements leave unused slots."""
    b = Builder((6,))
    b.dense(6, 5)
    b.arrays[f"{b.last}.weight"] *= 0.5
    b.square((5,))
    b.add("polynomial", (5,), {**ATTRS, "low": 0.0, "high": 4.0}, coefficients=swish(degree))
    return b


def gate(degree: int) -> Builder:
    """x * p(x), x read twice from one linear layer; then a power-basis quartic right on the product."""
    b = Builder((8,))
    x = b.dense(8, 8)
    b.add("polynomial", (8,), ATTRS, coefficients=swish(degree))
    b.add("multiply", (8,), inputs=(b.last, x))
    b.add("polynomial", (8,), {"basis": "power", "low": -2.0, "high": 4.0}, coefficients=[0.1, 0.5, 0.2, -0.1, 0.02])
    return b


def uneven(_: int) -> Builder:
    """Degrees differ between the channels, down to a constant; and a residual sum before it that nothing rescales."""
    b = Builder((6,))
    kept = b.dense(6, 4)
    b.square((4,))
    b.add("add", (4,), inputs=(kept, b.last))
    coefficients = np.zeros((4, 8))
    coefficients[0], coefficients[1, :5], coefficients[2, :2], coefficients[3, 0] = swish(7), swish(4), [0.2, 1.0], 0.7
    b.add("polynomial", (4,), {**ATTRS, "low": -3.0, "high": 12.0}, coefficients=coefficients)
    b.dense(4, 3)
    return b


def in_a_row(degree: int) -> Builder:
    """One polynomial after the other, the first on the model's own input."""
    b = Builder((4,))
    b.add("polynomial", (4,), {**ATTRS, "low": -1.0, "high": 1.0}, coefficients=swish(degree))
    b.add("polynomial", (4,), ATTRS, coefficients=swish(3))
    return b


CASES = {f.__name__: f for f in (after_linear, after_square, gate, uneven, in_a_row)}
# Levels beside those of the polynomials: of squares and products.
OTHERS = {"after_linear": 0, "after_square": 1, "gate": 1 + 2, "uneven": 1, "in_a_row": 2}


def planned(builder: Builder, name: str, batch: int = 1) -> tuple[CompressedModel, Plan]:
    model = builder.calibrated(name)
    largest = max(map(abs, model.ranges[model.output.node]))
    return model, compile(model, max_error=0.2 * largest, batch=batch, degrees=(8192, 16384))


@pytest.mark.parametrize("degree", [3, 4, 7])
@pytest.mark.parametrize("name", sorted(CASES))
def test_depth_is_that_of_the_polynomial(name: str, degree: int) -> None:
    model = CASES[name](degree).calibrated()
    stages = build_stages(model, 4096)
    least = math.ceil(math.log2(7 if name == "uneven" else degree))
    assert max(stage_levels(stages).values()) == least + OTHERS[name]


@pytest.mark.parametrize("batch", [1, 4, 4096])
@pytest.mark.parametrize(("name", "degree"), [*((n, 7) for n in sorted(CASES)), ("gate", 3)])
def test_the_plan_computes_the_graph(name: str, degree: int, batch: int) -> None:
    builder = CASES[name](degree)
    model, plan = planned(builder, name, batch)
    x = builder.inputs(5)
    expected = forward(model, x)
    np.testing.assert_allclose(run_clear(plan, x), expected, atol=1e-9 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize(
    ("name", "degree", "batch"),
    [("after_linear", 15, 1), ("after_square", 7, 1), ("gate", 4, 1), ("in_a_row", 5, 1), ("uneven", 0, 4096)],
)
def test_encrypted_equals_clear_within_the_predicted_error(name: str, degree: int, batch: int) -> None:
    builder = CASES[name](degree)
    _, plan = planned(builder, name, batch)
    key, spec = SecretKey.generate(plan.params), plan.client_spec()
    executor = Executor(plan, "tenseal")
    loaded = executor.load_keys(EvaluationKeys(plan.params.digest, {r.element: r for r in key.make_keys(plan.keys)}))
    errors = []
    inputs = builder.inputs(8 if batch == 1 else 200)
    for samples in np.split(inputs, len(inputs) if batch == 1 else 1):
        encrypted = [key.encrypt(slots, spec.input.level, spec.input.scale) for slots in spec.input.pack(samples)]
        result = executor.run(encrypted, loaded)
        assert executor.counters == plan.counts
        decrypted = spec.output.unpack(np.stack([key.decrypt(ct) for ct in result]), len(samples))
        errors.append(decrypted - run_clear(plan, samples))
    assert float(np.abs(errors).max()) <= 1.5 * plan.error_bound
    # Of polynomials of polynomials a few samples and the key carry nearly all of the error: 0.5 to 1.7 sigmas in 40 runs.
    least, most = (0.25, 2.5) if name == "in_a_row" else (0.4, 1.6)
    assert least * plan.sigma <= float(np.sqrt(np.mean(np.square(errors)))) <= most * plan.sigma


def test_planned_products_are_those_of_the_structure() -> None:
    model, plan = planned(after_linear(7), "one")
    stage = build_stages(model, 4096)[1]
    found = structure(stage.coefficients)  # type: ignore[union-attr]
    own = leaf_totals(layer_counts(plan)[stage.name])
    assert own.get("mul", 0) + own.get("square", 0) == found.products == 4
    assert own["relinearize"] == found.relinearizations == 4


def test_low_degrees_are_quadratics_and_affine_maps() -> None:
    for degree, kinds in ((1, ["LinearStage"]), (2, ["LinearStage", "QuadraticStage", "LinearStage"])):
        b = Builder((6,))
        b.dense(6, 5)
        b.add("polynomial", (5,), {**ATTRS, "low": [-3, -2, -1, -1, -1]}, coefficients=[0.3, 0.5, -0.2][: degree + 1])
        b.dense(5, 3)
        model, plan = planned(b, "low")
        assert [type(s).__name__ for s in build_stages(model, 4096)] == kinds
        np.testing.assert_allclose(run_clear(plan, b.inputs(3)), forward(model, b.inputs(3)), atol=1e-9)


@pytest.mark.parametrize(
    ("attrs", "coefficients"),
    [
        ({"basis": "hermite"}, [1.0, 2.0]),
        ({"low": 3.0}, [1.0, 2.0]),
        ({"low": [0.0, 0.0]}, [1.0, 2.0]),
        ({"high": float("nan")}, [1.0, 2.0]),
        ({}, 1.0),
        ({}, [[1.0, 2.0], [1.0, 2.0]]),
        ({}, np.ones(300)),
    ],
)
def test_bad_polynomials_are_refused(attrs: dict[str, Any], coefficients: Any) -> None:
    b = Builder((5,))
    b.add("polynomial", (5,), {**ATTRS, **attrs}, coefficients=coefficients)
    with pytest.raises(ModelError, match="cannot use node"):
        b.calibrated()
