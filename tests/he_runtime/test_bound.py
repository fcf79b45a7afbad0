"""The stated bound follows the noisiest output, not the mean one."""

from __future__ import annotations

import statistics
from statistics import NormalDist

import numpy as np
import pytest

from he_runtime import Executor, Plan, compile, run_clear
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.error_bound import SlotErrors
from he_runtime.ring import EvaluationKeys
from tests.he_runtime.networks import Builder


def planned(last_row: float) -> Plan:
    """16-16-8 with a square; the last output's weights are larger by a factor."""
    b = Builder((16,))
    b.dense(16, 16)
    b.square((16,))
    name = b.dense(16, 8)
    b.arrays[f"{name}.weight"][-1] *= last_row
    return compile(b.calibrated("rows"), degrees=(8192,), max_error=10.0)


def test_one_noisy_output_moves_the_bound_more_than_sigma() -> None:
    even, uneven = planned(1.0), planned(20.0)
    assert 1.0 <= even.error_bound / (6 * even.sigma) < 2.0
    assert 2.0 < uneven.error_bound / (6 * uneven.sigma) < 3.5, "one of eight outputs has nearly all of the error"


def test_alike_samples_are_bound_by_six_sigmas_of_the_noisiest_read_output() -> None:
    variance = np.array([[[1.0, 4.0, 100.0]]])  # (ciphertexts, samples, lane groups); the last is not read
    read = np.array([[True, True, False]])
    assert SlotErrors(variance).bound(read) == pytest.approx(12.0)
    assert SlotErrors(np.repeat(variance, 64, axis=1)).bound(read) == pytest.approx(12.0)
    assert SlotErrors(variance, peaks=np.array([[9.0, 1.0, 1.0]])).bound(read) == pytest.approx(18.0)


def test_a_few_noisy_samples_move_the_bound_to_what_one_output_in_a_hundred_thousand_exceeds() -> None:
    """One sample of 64 errs ten times as much: six sigmas of all are exceeded too often."""
    sigmas = np.ones(64)
    sigmas[17] = 10.0
    errors = SlotErrors((sigmas**2)[None, :, None])
    bound = errors.bound(np.array([[True]]))
    assert bound > 6 * errors.mean[0, 0] ** 0.5
    shares = [2 * NormalDist(0, s).cdf(-bound) for s in sigmas]
    assert statistics.fmean(shares) == pytest.approx(1e-5, rel=1e-3)


def test_no_error_is_bound_by_nothing() -> None:
    assert SlotErrors(np.zeros((1, 4, 2))).bound(np.array([[True, True]])) == 0.0


def test_single_random_batches_stay_within_the_bound() -> None:
    """Outputs whose error follows their value, x^2 of an input with tails. Six sigmas of all samples were exceeded by 2 to 5 of
    these outputs, this bound by 0 to 3, by a quarter at the most."""
    b = Builder((12,))
    b.dense(12, 12)
    b.square((12,))
    plan = compile(b.calibrated("tails"), max_error=1.0, degrees=(8192,), batch=4096)
    key, spec = SecretKey.generate(plan.params), plan.client_spec()
    executor = Executor(plan, "tenseal")
    loaded = executor.load_keys(EvaluationKeys(plan.params.digest, {r.element: r for r in key.make_keys(plan.keys)}))
    samples = b.inputs(4096)
    encrypted = [key.encrypt(slots, spec.input.level, spec.input.scale) for slots in spec.input.pack(samples)]
    answers = spec.output.unpack(np.stack([key.decrypt(ct) for ct in executor.run(encrypted, loaded)]), 4096)
    errors = np.abs(answers - run_clear(plan, samples)) / plan.error_bound
    assert (errors > 1).sum() <= 10, "about one of the 49,152 is expected beyond the bound where it is tight"
    assert 0.3 < errors.max() <= 1.75
