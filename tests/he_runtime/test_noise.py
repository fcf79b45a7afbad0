"""The error model against SEAL: operand rounding exactly, random noise in distribution."""

from __future__ import annotations

import numpy as np
import pytest

from he_runtime.backends.seal_bridge import make_context, parms_id, sealapi
from he_runtime.encoding import rounded
from he_runtime.noise import fresh_variance
from he_runtime.params import CkksParams, find_primes

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


def test_fresh_encryption_has_the_predicted_variance(params: CkksParams) -> None:
    from he_runtime.backends.tenseal_secret import SecretKey

    key, scale = SecretKey.generate(params), 2.0**30
    values = np.random.default_rng(0).uniform(-1, 1, DEGREE // 2)
    errors = np.concatenate([key.decrypt(key.encrypt(values, 1, scale)) - values for _ in range(20)])
    assert float(np.mean(errors**2)) == pytest.approx(fresh_variance(params, scale), rel=0.1)
