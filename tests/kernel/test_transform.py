"""Fused linear transforms: against the clear and the default expansion, and the same bits however they are run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tenseal")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from he_runtime.gadget import SEAL
from he_runtime.ring import CiphertextData
from tests.he_runtime import hybrid_reference as reference
from tests.kernel.evaluation import Machine, chain, record, residues, secret
from tests.kernel.linear import Linear, Slots, clear, deviation, encrypt, expanded, fused, random_linear, run

N = 1024
GADGETS = {
    "seal": (SEAL, chain(N, [45, 38, 38, 38], [46])),
    "seal-wide": (SEAL, chain(N, [60, 38, 55, 59], [60])),
    "hybrid-1": ("hybrid-1", chain(N, [45, 38, 38], [46, 46])),
    "hybrid-2": ("hybrid-2", chain(N, [45, 40, 40, 40, 40], [47, 47])),  # the last digit is partial
    "hybrid-2-wide": ("hybrid-2", chain(N, [58, 49, 57], [60, 60])),
    "hybrid-3": ("hybrid-3", chain(N, [45, 40, 24, 40], [48, 47, 46])),
}
SHAPES: dict[str, tuple[int, int, list[int], list[int], float]] = {
    # inputs, outputs, baby steps, giant steps, density
    "full": (2, 2, [0, 1, 2], [0, 3], 1.0),
    "sparse": (3, 2, [0, 1, 5, 7], [0, 3, 8], 0.3),
    "babies-alone": (2, 2, [1, 2, 5], [0], 1.0),
    "giants-alone": (3, 2, [0], [0, 3, 8], 0.8),
    "no-identity-group": (2, 2, [0, 2], [3, 5], 0.8),
    "neither": (3, 2, [0], [0], 0.7),
    "one-step": (1, 1, [1], [1], 1.0),
    "many": (4, 3, [0, 1, 2, 5, 7], [0, 3, 8], 0.9),
}


@pytest.fixture(autouse=True)
def threads(kernel: Any) -> Iterator[None]:
    before = kernel.threads()
    yield
    kernel.set_threads(before)


def scales(level: int) -> tuple[float, float]:
    """Of ciphertext and operand: what fits the modulus of the level."""
    return (2.0**36, 2.0**34) if level else (2.0**20, 2.0**18)


def machines(kernel: Any, paths: list[str], name: str) -> list[Machine]:
    gadget, params = GADGETS[name]
    return [Machine.make(kernel, params, path, gadget) for path in paths]


def decrypted(machine: Machine, ys: list[Any], scale: float) -> list[Slots]:
    return [secret(machine.params).decrypt(CiphertextData(y.shape[1] - 1, scale, tuple(y))) for y in ys]


def check(kernel: Any, paths: list[str], name: str, linear: Linear, level: int, key_level: int, seed: int) -> None:
    """Every path, number of threads and form of the operands: one result, within the predicted noise."""
    rng = np.random.default_rng(seed)
    gadget, params = GADGETS[name]
    elements = sorted(params.galois_element(step) for step in linear.steps)
    xs = [rng.uniform(-1, 1, params.slots) for _ in range(linear.inputs)]
    scale, plain_scale = scales(level)
    inputs = encrypt(params, xs, level, scale)
    first: list[Any] | None = None
    for machine in machines(kernel, paths, name):
        keys = machine.keys(elements, key_level)
        for threads, compact in ((1, False), (3, True)):
            kernel.set_threads(threads)
            got = run(machine, fused(machine, linear, level, plain_scale, compact), inputs, keys)
            first = first or got
            np.testing.assert_array_equal(
                got, first, err_msg=f"{machine.ring.path}, {threads} threads, compact {compact}"
            )
    assert first is not None
    bound = 5 * deviation(linear, params, gadget, level, scale, plain_scale)
    for slots, wanted in zip(decrypted(machine, first, scale * plain_scale), clear(linear, xs), strict=True):
        assert np.abs(slots - wanted).max() < bound
    assert bound < 2.0**-4 if level == 0 else bound < 2.0**-14, "the bound would catch a wrong result"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", GADGETS)
def test_one_result_within_the_predicted_noise(kernel: Any, paths: list[str], name: str, shape: str) -> None:
    _, params = GADGETS[name]
    linear = random_linear(np.random.default_rng(11), params.slots, *SHAPES[shape])
    for level in {params.max_level, params.max_level - 1, 0}:
        check(kernel, paths, name, linear, level, params.max_level, level)


@pytest.mark.parametrize("name", GADGETS)
def test_keys_cut_to_a_level_serve_those_below(kernel: Any, paths: list[str], name: str) -> None:
    _, params = GADGETS[name]
    linear = random_linear(np.random.default_rng(12), params.slots, 2, 1, [0, 1], [0, 3], 1.0)
    for level in range(params.max_level):
        check(kernel, paths, name, linear, level, params.max_level - 1, level)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(GADGETS)),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    babies=st.lists(st.sampled_from([0, 1, 2, 5, 7]), min_size=1, max_size=4, unique=True),
    giants=st.lists(st.sampled_from([0, 3, 8]), min_size=1, max_size=3, unique=True),
    density=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    down=st.integers(0, 4),
    seed=st.integers(0, 1 << 32),
)
def test_any_shape(
    kernel: Any, paths: list[str], name: str, inputs: int, outputs: int, babies: list[int], giants: list[int],
    density: float, down: int, seed: int,
) -> None:  # fmt: skip
    _, params = GADGETS[name]
    linear = random_linear(np.random.default_rng(seed), params.slots, inputs, outputs, babies, giants, density)
    check(kernel, paths, name, linear, max(0, params.max_level - down), params.max_level, seed)


@pytest.mark.parametrize("name", ["seal", "hybrid-2"])
def test_it_agrees_with_the_default_expansion(kernel: Any, paths: list[str], name: str) -> None:
    gadget, params = GADGETS[name]
    linear = random_linear(np.random.default_rng(13), params.slots, 2, 2, [0, 1, 2], [0, 3], 0.8)
    machine, level = machines(kernel, paths[-1:], name)[0], params.max_level
    keys = machine.keys(sorted(params.galois_element(step) for step in linear.steps), level)
    scale, plain_scale = scales(level)
    rng = np.random.default_rng(14)
    inputs = encrypt(params, [rng.uniform(-1, 1, params.slots) for _ in range(2)], level, scale)
    by_leaf = expanded(machine, linear, inputs, keys, level, plain_scale)
    at_once = run(machine, fused(machine, linear, level, plain_scale, False), inputs, keys)
    # The leaves divide after each baby step, and SEAL's digits are not centred: a few times the fused call's noise,
    # and in the slots next to the root 1 up to N times.
    near = deviation(linear, params, gadget, level, scale, plain_scale)
    for a, b in zip(
        decrypted(machine, by_leaf, scale * plain_scale), decrypted(machine, at_once, scale * plain_scale), strict=True
    ):
        assert np.median(np.abs(a - b)) < 7 * near
        assert np.abs(a - b).max() < 7 * near * N


def test_without_any_rotation_it_has_the_leaves_bits(kernel: Any, paths: list[str]) -> None:
    """Exact: products and sums alone, of rows, compact operands and constants."""
    _, params = GADGETS["seal"]
    rng = np.random.default_rng(15)
    for constants in (False, True):
        linear = random_linear(rng, params.slots, 3, 2, [0], [0], 0.8)
        if constants:
            linear = Linear(3, linear.babies, linear.groups, linear.cells, tuple(v[:1] for v in linear.operands))
        inputs = encrypt(params, [rng.uniform(-1, 1, params.slots) for _ in range(3)], 2, 2.0**36)
        for machine in machines(kernel, paths, "seal"):
            by_leaf = expanded(machine, linear, inputs, {}, 2, 2.0**30)
            for compact in (False, True):
                at_once = run(machine, fused(machine, linear, 2, 2.0**30, compact), inputs, {})
                np.testing.assert_array_equal(at_once, by_leaf, err_msg=machine.ring.path)


@pytest.mark.parametrize("name", GADGETS)
def test_a_single_step_is_the_exact_rotation(kernel: Any, paths: list[str], name: str) -> None:
    """As a baby or as a giant step, at every level: bit for bit what Python's integers give."""
    gadget, params = GADGETS[name]
    top, element = params.max_level, params.galois_element(3)
    key = record(params, element, top, gadget)
    one = (np.array([1.0]),)
    baby = Linear(1, ((0, 3),), ((0, 0),), ((0, 0, 0),), one)
    giant = Linear(1, ((0, 0),), ((0, 3),), ((0, 0, 0),), one)
    for level in range(top + 1):
        x = residues(np.random.default_rng(level), params, level, 2)
        exact = reference.rotated(CiphertextData(level, 1.0, tuple(x)), key, params)
        for machine in machines(kernel, paths, name):
            keys = {element: machine.key(element, top)}
            for linear in (baby, giant):
                (got,) = run(machine, fused(machine, linear, level, 1.0, False), [x], keys)
                np.testing.assert_array_equal(got, np.array(exact.polys), err_msg=f"{machine.ring.path}, level {level}")


@pytest.mark.parametrize("name", ["seal", "hybrid-2-wide"])
def test_any_number_of_threads_and_any_run_has_the_same_bits(kernel: Any, paths: list[str], name: str) -> None:
    _, params = GADGETS[name]
    linear = random_linear(np.random.default_rng(16), params.slots, *SHAPES["many"])
    rng = np.random.default_rng(17)
    inputs = encrypt(params, [rng.uniform(-1, 1, params.slots) for _ in range(4)], params.max_level, 2.0**36)
    machine = machines(kernel, paths[-1:], name)[0]
    keys = machine.keys(sorted(params.galois_element(step) for step in linear.steps), params.max_level)
    transform = fused(machine, linear, params.max_level, 2.0**34, False)
    first = None
    for threads in (1, 2, 3, 5, 2):
        kernel.set_threads(threads)
        for _ in range(4):
            got = run(machine, transform, inputs, keys)
            first = first or got
            np.testing.assert_array_equal(got, first, err_msg=f"{threads} threads")


def test_more_products_than_a_sum_takes(kernel: Any, paths: list[str]) -> None:
    """Beyond the 2048 and 4092 products that are reduced at once: cells repeat a baby."""
    _, params = GADGETS["seal"]
    rng = np.random.default_rng(18)
    x = rng.uniform(-1, 1, params.slots)
    inputs = encrypt(params, [x], 1, 2.0**30)
    count = 4500
    for operands in ((rng.uniform(0.5, 1, params.slots), np.array([0.25])), (np.array([0.5]), np.array([0.25]))):
        linear = Linear(1, ((0, 0),), ((0, 0),), tuple((0, 0, k % 2) for k in range(count)), operands)
        for machine in machines(kernel, paths, "seal"):
            (got,) = decrypted(machine, run(machine, fused(machine, linear, 1, 2.0**20, False), inputs, {}), 2.0**50)
            assert np.abs(got - clear(linear, [x])[0]).max() < count * 2.0**-13, machine.ring.path
