"""The contract of single operations: every leaf of every backend against `clear`, at every level of a chain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from he_runtime import Executor, Plan, run_clear
from he_runtime.backends import BACKENDS
from he_runtime.params import CkksParams, find_primes
from he_runtime.plan import LEAVES, Kind, Op, Plaintext, Port, ValueType, verify
from he_runtime.plan.ops import TYPING
from he_runtime.ring import EvaluationKeys

SCALE = 2.0**30
DEGREE = 4096
# These drop a prime, or make a scale that one prime cannot hold.
ABOVE_ZERO = (Kind.RESCALE, Kind.MOD_SWITCH, Kind.MUL_PLAIN, Kind.MUL, Kind.SQUARE, Kind.RELINEARIZE)


def chain() -> CkksParams:
    special, *primes = find_primes(DEGREE, [35.0, 35.0, 35.0])
    return CkksParams(DEGREE, tuple(primes), (special,))


def single_op(kind: Kind, level: int) -> Plan:
    """Two inputs -> one op (and what it needs around it: relinearize needs a product, a product is relinearized)."""
    params = chain()
    rng = np.random.default_rng(7)
    vector = rng.uniform(-1, 1, 16)
    scale = SCALE**2 if kind is Kind.RESCALE else SCALE
    values = [ValueType(level, scale), ValueType(level, scale)]
    plain = Plaintext(0, level, scale)
    ops: list[Op] = []

    def emit(k: Kind, *inputs: int) -> int:
        op = Op(k, inputs, (len(values),), "layer", 0 if k in (Kind.ADD_PLAIN, Kind.MUL_PLAIN) else -1, 5)
        values.append(TYPING[k](op, [values[i] for i in inputs], plain, params))
        ops.append(op)
        return len(values) - 1

    match kind:
        case Kind.ADD | Kind.SUB | Kind.MUL:
            out = emit(kind, 0, 1)
        case Kind.RELINEARIZE:
            out = emit(kind, emit(Kind.SQUARE, 0))
        case _:
            out = emit(kind, 0)
    every = tuple(np.arange(params.slots).reshape(1, -1) + k * params.slots for k in range(2))
    border = Port("x", (2 * params.slots,), (0, 1), np.concatenate(every))
    result = Port("y", (params.slots,), (out,), every[0])
    return verify(Plan("op", "0" * 64, params, tuple(ops), tuple(values), (vector,), (plain,), (border,), (result,)))


@pytest.fixture(scope="module")
def secret() -> Any:
    from he_runtime.backends.tenseal_secret import SecretKey

    return SecretKey.generate(chain())


@pytest.mark.parametrize(("kind", "level"), [(k, v) for k in LEAVES for v in (0, 1) if v or k not in ABOVE_ZERO])
@pytest.mark.parametrize(
    "backend", [pytest.param(n, marks=[pytest.mark.pyfhel] if n == "pyfhel" else []) for n in sorted(BACKENDS)]
)
def test_a_leaf_equals_clear(backend: str, kind: Kind, level: int, secret: Any) -> None:
    plan = single_op(kind, level)
    executor = Executor(plan, backend)
    keys = executor.load_keys(EvaluationKeys(plan.params.digest, {r.element: r for r in secret.make_keys(plan.keys)}))
    x = np.random.default_rng(1).uniform(-1, 1, (1, 2 * plan.params.slots))
    encrypted = [secret.encrypt(half, level, plan.values[0].scale) for half in x[0].reshape(2, -1)]
    (result,) = executor.run(encrypted, keys)
    assert executor.counters == plan.counts
    expected = plan.values[plan.outputs[0].values[0]]
    assert (result.level, len(result.polys)) == (expected.level, expected.size)
    assert result.scale == pytest.approx(expected.scale, rel=1e-12)
    np.testing.assert_allclose(secret.decrypt(result), run_clear(plan, x)[0], atol=2e-3)
