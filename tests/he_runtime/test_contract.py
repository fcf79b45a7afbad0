"""The contract: every backend runs every network like the clear evaluator, within the predicted error, and counts
exactly what the plan counts."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest

from he_runtime import Executor, Plan, compile, run_clear
from he_runtime.backends import BACKENDS, LIBRARIES
from he_runtime.backends.base import Evaluator, walk
from he_runtime.backends.clear import ClearEvaluator
from he_runtime.errors import CiphertextMismatch, KeyMismatch
from he_runtime.plan import LEAVES
from he_runtime.reference import forward
from he_runtime.ring import EvaluationKeys
from tests.he_runtime.networks import NETWORKS


def _backend(name: str) -> Any:
    return pytest.param(name, marks=[pytest.mark.pyfhel] if name == "pyfhel" else [], id=name)


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def network(request: pytest.FixtureRequest) -> tuple[Any, Any, Plan]:
    builder = NETWORKS[request.param]()
    model = builder.calibrated(request.param)
    return builder, model, compile(model, max_error=0.05 * max(map(abs, model.ranges[model.output.node])))


@pytest.fixture(scope="module")
def secret(network: tuple[Any, Any, Plan]) -> tuple[Any, EvaluationKeys]:
    from he_runtime.backends.tenseal_secret import SecretKey

    plan = network[2]
    key = SecretKey.generate(plan.params)
    return key, EvaluationKeys(plan.params.digest, {r.element: r for r in key.make_keys(plan.keys)})


def test_clear_plan_equals_the_graph(network: tuple[Any, Any, Plan]) -> None:
    builder, model, plan = network
    x = builder.inputs(5)
    expected = forward(model, x)
    np.testing.assert_allclose(run_clear(plan, x), expected, atol=1e-9 * max(1.0, float(np.abs(expected).max())))


def test_clear_counters_equal_the_plan(network: tuple[Any, Any, Plan]) -> None:
    builder, _, plan = network
    evaluator = ClearEvaluator(plan)
    spec = plan.tensor_spec(plan.inputs[0])
    inputs = [evaluator.upload(slots[None], spec.level) for slots in spec.pack(builder.inputs(1))]
    walk(plan, evaluator, inputs)
    assert evaluator.counters == plan.counts


@pytest.mark.parametrize("backend", [_backend(name) for name in sorted(BACKENDS)])
def test_encrypted_equals_clear_within_the_predicted_error(
    network: tuple[Any, Any, Plan], secret: tuple[Any, EvaluationKeys], backend: str
) -> None:
    builder, _, plan = network
    key, keys = secret
    executor = Executor(plan, backend)
    loaded = executor.load_keys(keys)
    spec = plan.client_spec()
    inputs = builder.inputs(16)
    clear = run_clear(plan, inputs)
    errors = []
    for sample, expected in zip(inputs, clear, strict=True):
        encrypted = [key.encrypt(slots, spec.input.level, spec.input.scale) for slots in spec.input.pack(sample[None])]
        result = executor.run(encrypted, loaded)
        assert executor.counters == plan.counts_on(backend)
        decrypted = spec.output.unpack(np.stack([key.decrypt(ct) for ct in result]))[0]
        errors.append(decrypted - expected)
    # Sigma is the RMS over samples. Random weights give single samples several times as much, trained ones do not
    # (docs/results): the bound itself is for these.
    assert float(np.abs(errors).max()) <= 1.5 * plan.error_bound
    assert 0.3 * plan.sigma <= float(np.sqrt(np.mean(np.square(errors)))) <= 2 * plan.sigma


@pytest.mark.parametrize("backend", [_backend(name) for name in sorted(BACKENDS)])
def test_wrong_inputs_and_keys_are_refused(
    network: tuple[Any, Any, Plan], secret: tuple[Any, EvaluationKeys], backend: str
) -> None:
    _, _, plan = network
    key, keys = secret
    executor = Executor(plan, backend)
    loaded = executor.load_keys(keys)
    spec = plan.client_spec().input
    good = [key.encrypt(np.zeros(plan.params.slots), spec.level, spec.scale) for _ in range(spec.ciphertexts)]
    with pytest.raises(CiphertextMismatch):
        executor.run([*good, good[0]], loaded)
    scaled = key.encrypt(np.zeros(plan.params.slots), spec.level, spec.scale * 1.5)
    with pytest.raises(CiphertextMismatch):
        executor.run([scaled] * len(good), loaded)
    if spec.level > 0:
        low = key.encrypt(np.zeros(plan.params.slots), spec.level - 1, spec.scale)
        with pytest.raises(CiphertextMismatch):
            executor.run([low] * len(good), loaded)
    missing = dict(keys.records)
    missing.pop(plan.keys.requests[-1].element)
    with pytest.raises(KeyMismatch):
        executor.load_keys(EvaluationKeys(keys.params_digest, missing))
    with pytest.raises(KeyMismatch):
        executor.load_keys(EvaluationKeys("0" * 64, keys.records))


@pytest.mark.parametrize("leaf", ["rotate", "mul_plain", "add", "square", "rescale"])
@pytest.mark.parametrize("calls", [0, 2])
def test_a_dropped_or_doubled_leaf_call_is_noticed(leaf: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: the first SEAL call of one leaf is left out, or made twice; the counters must show it."""
    from he_runtime.backends.tenseal import TensealEvaluator
    from he_runtime.backends.tenseal_secret import SecretKey

    plan = compile(NETWORKS["mlp"]().calibrated(), max_error=1.0)
    key = SecretKey.generate(plan.params)
    keys = EvaluationKeys(plan.params.digest, {r.element: r for r in key.make_keys(plan.keys)})
    original, mutated = TensealEvaluator._call, []

    def mutant(self: TensealEvaluator, name: str, function: Any, x: Any, *arguments: Any) -> Any:
        if name != leaf or mutated:
            return original(self, name, function, x, *arguments)
        mutated.append(name)
        result = x
        for _ in range(calls):
            result = original(self, name, function, x, *arguments)
        return result

    monkeypatch.setattr(TensealEvaluator, "_call", mutant)
    executor = Executor(plan, "tenseal")
    spec = plan.client_spec().input
    inputs = [key.encrypt(np.zeros(plan.params.slots), spec.level, spec.scale)]
    noticed = False
    try:
        executor.run(inputs, executor.load_keys(keys))
    except (ValueError, IndexError):
        noticed = True  # SEAL itself objects: a level or scale no longer matches
    assert mutated and (noticed or executor.counters != plan.counts)


def test_every_backend_implements_every_leaf() -> None:
    for module, _ in BACKENDS.values():
        if importlib.util.find_spec(LIBRARIES[module[1:]]) is None:
            continue
        found = importlib.import_module(f"he_runtime.backends{module}")
        evaluators = [
            c for c in vars(found).values() if isinstance(c, type) and issubclass(c, Evaluator) and c is not Evaluator
        ]
        for evaluator in (*evaluators, ClearEvaluator):
            assert not evaluator.__abstractmethods__
            assert all(callable(getattr(evaluator, leaf.value)) for leaf in LEAVES)
