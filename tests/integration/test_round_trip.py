"""Client, TLS, front door, worker, TenSEAL, and back: encrypted answers equal clear ones within the plan's bound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import Client
from he_runtime import compile, run_clear
from he_runtime.backends import default_backend
from he_runtime.plan.counts import leaf_totals
from tests.he_runtime.networks import NETWORKS
from tests.integration.stack import MODELS, RawClient, Stack, sample, serving

QUICK, OTHER = MODELS


@pytest.mark.parametrize("model", MODELS)
def test_answers_equal_clear_ones_and_counts_equal_the_plans(stack: Stack, client: Client, model: str) -> None:
    for index in range(4):
        x = sample(model, index)
        answer = client.predict(model, x)
        error = np.abs(answer.logits - stack.expected(model, x))
        assert 0 < error.max() <= stack.plans[model].error_bound == answer.error_bound
        assert answer.counts == stack.counts(model)
        assert min(answer.up_bytes, answer.down_bytes, answer.timings.server_evaluate_seconds) > 0


def test_a_batch_is_its_samples(stack: Stack, client: Client) -> None:
    batch = np.stack([sample(QUICK, index) for index in range(3)])
    answer = client.predict(QUICK, batch)
    expected = np.stack([stack.expected(QUICK, x) for x in batch])
    assert answer.logits.shape == expected.shape
    assert np.abs(answer.logits - expected).max() <= stack.plans[QUICK].error_bound
    assert answer.counts == {name: 3 * count for name, count in stack.counts(QUICK).items()}


def test_samples_that_share_ciphertexts_share_a_request(tmp_path: Path) -> None:
    """A plan for batches of four: six samples are two requests, the second half empty."""
    model = NETWORKS[QUICK]().calibrated(QUICK)
    model = model.with_(input=replace(model.input, low=-1.0, high=1.0))
    plan = compile(model, batch=4, max_error=0.05 * max(map(abs, model.ranges[model.output.node])))
    plan.save(model.save(tmp_path / "models" / QUICK / "1") / "plan")
    samples = np.stack([sample(QUICK, index) for index in range(6)])
    with serving(tmp_path, {QUICK: plan}) as served, served.connect(tmp_path / "home") as client:
        answer = client.predict(QUICK, samples)
        single = client.predict(QUICK, samples[5])
    clear = run_clear(plan, samples)
    assert np.abs(answer.logits - clear).max() <= 1.5 * plan.error_bound
    assert np.abs(single.logits - clear[5]).max() <= 1.5 * plan.error_bound
    assert answer.counts == {name: 2 * count for name, count in leaf_totals(plan.counts_on(default_backend())).items()}
    assert answer.up_bytes == 2 * single.up_bytes


def test_the_server_says_what_it_serves(stack: Stack, client: Client) -> None:
    assert {(m.name, m.versions) for m in client.models()} == {(name, ("1",)) for name in MODELS}
    estimate = client.estimate(QUICK)
    answer = client.predict(QUICK, sample(QUICK))
    assert estimate.counts == answer.counts
    assert (estimate.up_bytes, estimate.down_bytes) == (answer.up_bytes, answer.down_bytes)
    assert estimate.key_bytes == answer.key_bytes


def test_clients_have_secrets_of_their_own(stack: Stack, tmp_path: Path) -> None:
    with stack.connect(tmp_path / "a") as first, stack.connect(tmp_path / "b") as second:
        stack.check(first)
        stack.check(second)
        stack.check(first)
    files = [path.read_bytes() for path in tmp_path.rglob("secret.key")]
    assert len(files) == 2 and files[0] != files[1]


def test_another_secret_reads_nothing(stack: Stack, raw: RawClient) -> None:
    expected = stack.expected(QUICK, sample(QUICK))
    reply = raw.infer().ciphertexts
    assert np.abs(raw.decrypt(reply) - expected).max() <= stack.plans[QUICK].error_bound
    stranger = RawClient(raw.caller, raw.model, raw.spec, type(raw.secret).generate(raw.spec.params))
    assert np.abs(stranger.decrypt(reply) - expected).max() > 1e3 * stack.plans[QUICK].error_bound


def test_a_restart_keeps_the_keys(own: Any, tmp_path: Path) -> None:
    with own() as served:
        with served.connect(tmp_path / "home") as client:
            served.check(client)
            served.restart()
            served.check(client)
        with served.connect(tmp_path / "home") as again:
            assert again.predict(QUICK, sample(QUICK)).uploaded_bytes == 0


def test_evicted_keys_are_uploaded_again_by_the_client_itself(own: Any, tmp_path: Path) -> None:
    with own(KEYS_BUDGET_BYTES=str(6 << 20)) as served:  # room for one set of 4 MB
        with served.connect(tmp_path / "a") as first, served.connect(tmp_path / "b") as second:
            served.check(first)
            assert first.predict(QUICK, sample(QUICK)).uploaded_bytes == 0
            served.check(second)
            evicted = first.predict(QUICK, sample(QUICK))
            assert evicted.uploaded_bytes == evicted.key_bytes
        assert len(served.stored()["blobs"]) == 1 and not served.stored()["parts"]


@pytest.mark.parametrize("backend", [pytest.param("pyfhel", marks=pytest.mark.pyfhel), "tenseal"])
def test_another_backend_takes_the_same_keys(own: Any, tmp_path: Path, backend: str) -> None:
    with own() as served, served.connect(tmp_path / "home") as client:
        for model in MODELS:
            served.check(client, model)
        served.restart(ENGINE_BACKEND=backend)
        for model in MODELS:
            answer = client.predict(model, sample(model))
            error = np.abs(answer.logits - served.expected(model, sample(model))).max()
            assert 0 < error <= answer.error_bound
            assert (answer.uploaded_bytes, answer.counts) == (0, served.counts(model, backend))
