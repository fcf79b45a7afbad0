"""The error model against SEAL: operand rounding exactly, random noise in distribution."""

from __future__ import annotations

import numpy as np
import pytest

from he_runtime import Executor, compile, run_clear
from he_runtime.backends.seal_bridge import make_context, parms_id, sealapi
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.encoding import rounded
from he_runtime.noise import fresh_variance
from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import EvaluationKeys
from tests.he_runtime.networks import Builder

DEGREE = 4096


@pytest.fixture(scope="module")
def params() -> CkksParams:
    primes = find_primes(DEGREE, [36.0, 36.0, 33.9])
    return CkksParams(DEGREE, tuple(primes[1:]), (primes[0],))


@pytest.mark.parametrize("period", [1, 2, 16, 256, DEGREE // 2])
@pytest.mark.parametrize("scale", [2.0**9, 3000.5, 2.0**20])
def test_rounding_is_what_seal_does(params: CkksParams, period: int, scale: float) -> None:
    seal = sealapi()
    context = make_context(params)
    encoder, plain = seal.CKKSEncoder(context), seal.Plaintext()
    vector = np.random.default_rng(period).normal(size=period)
    full = np.resize(vector, DEGREE // 2)
    encoder.encode(float(vector[0]) if period == 1 else full.tolist(), parms_id(context, 1), scale, plain)
    expected = np.asarray(encoder.decode_double(plain))
    got = np.resize(rounded(vector[None], scale)[0], DEGREE // 2)
    np.testing.assert_allclose(got, expected, atol=1e-9)
    assert np.abs(got - full).max() > 0 or period == 1


@pytest.mark.parametrize("backend", ["tenseal", pytest.param("pyfhel", marks=[pytest.mark.pyfhel])])
def test_an_operand_that_rounds_to_nothing_is_still_one(backend: str) -> None:
    """One small weight in a long vector: SEAL refuses a product by zero, so the least constant stands for it."""
    b = Builder((512,))
    weight = np.zeros((512, 512))
    weight[0, 0], weight[5, 6] = 1.0, -1e-9
    b.add("dense", (512,), weight=weight)
    plan = compile(b.calibrated(), max_error=1.0)
    key, spec = SecretKey.generate(plan.params), plan.client_spec().input
    executor = Executor(plan, backend)
    records = {r.element: r for r in key.make_keys(plan.keys)}
    x = b.inputs(1)
    encrypted = [key.encrypt(slots, spec.level, spec.scale) for slots in spec.pack(x)]
    result = executor.run(encrypted, executor.load_keys(EvaluationKeys(plan.params.digest, records)))
    answer = plan.client_spec().output.unpack(np.stack([key.decrypt(ct) for ct in result]))
    # The bound is of the mean over 512 outputs, nearly all of them empty.
    assert float(np.abs(answer - run_clear(plan, x)).max()) <= 10 * plan.error_bound


def test_fresh_encryption_has_the_predicted_variance(params: CkksParams) -> None:
    key, scale = SecretKey.generate(params), 2.0**30
    values = np.random.default_rng(0).uniform(-1, 1, DEGREE // 2)
    errors = np.concatenate([key.decrypt(key.encrypt(values, 1, scale)) - values for _ in range(20)])
    assert float(np.mean(errors**2)) == pytest.approx(fresh_variance(params, scale), rel=0.1)
