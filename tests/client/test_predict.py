"""A real encrypted round trip through real gRPC: the server echoes, the client must get its own values back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import Client, RangeWarning, ServerBusy, ServerError, ServerUnreachable
from he_runtime.errors import InputError, Reason
from he_runtime.params import CkksParams
from protos.status import Failure


def test_one_sample_comes_back_normalized_with_label_probabilities_and_sizes(
    client: Client, server: Any, sample: np.ndarray
) -> None:
    answer = client.predict("echo", sample)
    expected = (sample.ravel() - 0.5) / 0.25
    np.testing.assert_allclose(answer.logits, expected, atol=1e-3)
    assert not np.array_equal(answer.logits, expected), "an encrypted answer carries noise"
    assert (answer.index, answer.label) == (5, "f")
    weights = np.exp(expected) / np.exp(expected).sum()
    assert answer.probabilities is not None
    np.testing.assert_allclose(answer.probabilities, weights, atol=1e-3)
    assert answer.up_bytes == len(server.requests[0].ciphertexts)
    assert answer.down_bytes > 4096 * 8
    assert answer.key_bytes == answer.uploaded_bytes == len(next(iter(server.stored.values())))
    assert answer.counts == {"rotate": 3}
    assert answer.timings.server_evaluate_seconds == pytest.approx(0.003)
    assert min(answer.timings.encrypt_seconds, answer.timings.decrypt_seconds) > 0


def test_the_server_sees_no_plaintext(client: Client, server: Any, sample: np.ndarray) -> None:
    client.predict("echo", sample)
    normalized = (sample.ravel() - 0.5) / 0.25
    sent = server.requests[0].ciphertexts + bytes(next(iter(server.stored.values())))
    for values in (sample.ravel(), normalized):
        assert all(v.tobytes() not in sent for v in values if v)


def test_a_batch_gives_arrays_in_order(client: Client, server: Any, sample: np.ndarray) -> None:
    batch = np.stack([sample, sample[::-1], 1 - sample])
    answer = client.predict("echo", batch)
    np.testing.assert_allclose(answer.logits, (batch.reshape(3, 8) - 0.5) / 0.25, atol=1e-3)
    assert isinstance(answer.index, np.ndarray)
    assert answer.index.tolist() == [5, 1, 6]
    assert answer.label == ("f", "b", "g")
    assert len({r.request_id for r in server.requests}) == 3
    assert answer.up_bytes == sum(len(r.ciphertexts) for r in server.requests)
    assert answer.timings.server_queue_seconds == pytest.approx(0.003)


def test_several_ciphertexts_per_tensor(
    client: Client, server: Any, sample: np.ndarray, changed: Any, make_tensor: Any
) -> None:
    tensors = {
        "input": make_tensor("x", (2, 4), ciphertexts=3),
        "output": make_tensor("y", (8,), level=0, ciphertexts=3),
    }
    server.specs["echo"] = changed(**tensors)
    answer = client.predict("echo", sample)
    np.testing.assert_allclose(answer.logits, (sample.ravel() - 0.5) / 0.25, atol=1e-3)


@pytest.mark.parametrize(("kind", "index", "label"), [("none", None, None), ("argmax", 5, "f")])
def test_post_processing_is_data(
    client: Client, server: Any, sample: np.ndarray, changed: Any, kind: str, index: int | None, label: str | None
) -> None:
    server.specs["echo"] = changed(post_processing=kind)
    answer = client.predict("echo", sample)
    assert (answer.index, answer.label, answer.probabilities) == (index, label, None)


def test_normalization_per_channel(client: Client, server: Any, sample: np.ndarray, changed: Any) -> None:
    server.specs["echo"] = changed(mean=(0.0, 1.0), std=(2.0, 0.5))
    answer = client.predict("echo", sample)
    expected = np.stack([sample[0] / 2, (sample[1] - 1) / 0.5]).ravel()
    np.testing.assert_allclose(answer.logits, expected, atol=1e-3)


def test_keys_are_uploaded_once_even_by_the_next_client(
    client: Client, server: Any, sample: np.ndarray, tmp_path: Path
) -> None:
    first = client.predict("echo", sample)
    second = client.predict("echo", sample)
    with Client.connect(server.address, home=tmp_path / "home") as later:
        third = later.predict("echo", sample)
    assert [first.uploaded_bytes, second.uploaded_bytes, third.uploaded_bytes] == [first.key_bytes, 0, 0]
    assert server.calls.count("CommitUpload") == 1


def test_evicted_keys_are_uploaded_again_by_themselves(client: Client, server: Any, sample: np.ndarray) -> None:
    client.predict("echo", sample)
    server.evict()
    answer = client.predict("echo", sample)
    assert answer.index == 5
    assert answer.uploaded_bytes == answer.key_bytes
    assert server.calls.count("CommitUpload") == 2


def test_keys_are_uploaded_again_only_once_per_call(client: Client, server: Any, sample: np.ndarray) -> None:
    server.failures = [Failure("KEY_SET_UNKNOWN", "gone")] * 3
    with pytest.raises(ServerError) as caught:
        client.predict("echo", sample)
    assert caught.value.reason is Reason.KEY_SET_UNKNOWN
    assert server.calls.count("Infer") == 2


@pytest.mark.parametrize("reason", ["MODEL_UNKNOWN", "VERSION_UNKNOWN"])
def test_a_replaced_default_version_is_fetched_again(
    client: Client, server: Any, sample: np.ndarray, changed: Any, reason: str
) -> None:
    client.predict("echo", sample)
    server.specs["echo"] = changed(version="2", post_processing="none")
    server.failures = [Failure(reason, "no version 1")]
    answer = client.predict("echo", sample)
    assert answer.index is None
    assert [r.version for r in server.requests] == ["1", "1", "2"]
    assert answer.uploaded_bytes == 0, "the same keys serve the new version"


@pytest.mark.parametrize("shape", [(8,), (4, 2), (0, 2, 4), (3, 2, 5), ()])
def test_a_wrong_shape_is_named(client: Client, server: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"got an array of shape \(.*need \(2, 4\)") as caught:
        client.predict("echo", np.zeros(shape))
    assert caught.value.reason is Reason.INPUT_SHAPE
    assert "CreateUpload" not in server.calls, "a wrong shape is found before keys are made"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_must_be_finite(client: Client, sample: np.ndarray, bad: float) -> None:
    sample[1, 2] = bad
    with pytest.raises(InputError) as caught:
        client.predict("echo", sample)
    assert caught.value.reason is Reason.INPUT_NOT_FINITE


@pytest.mark.parametrize("x", [[[1, 2], [3]], [["a"] * 4] * 2, np.zeros((2, 4), dtype=complex), None])
def test_what_is_not_an_array_of_real_numbers_is_refused(client: Client, x: Any) -> None:
    with pytest.raises(InputError, match="real numbers"):
        client.predict("echo", x)


def test_values_outside_the_calibrated_range_warn_and_name_the_layer(client: Client, sample: np.ndarray) -> None:
    sample[0, 0] = 1.2345
    with pytest.warns(RangeWarning, match=r"input layer 'x'.*1 of 8 values.*within \[0, 1\]") as caught:
        answer = client.predict("echo", sample)
    assert answer.index == 0
    assert "1.2345" not in str(caught[0].message), "a message never holds a value"
    assert caught[0].filename == __file__


def test_strict_refuses_values_outside_the_calibrated_range(client: Client, server: Any, sample: np.ndarray) -> None:
    sample[0, 0] = -0.01
    with pytest.raises(InputError, match="input layer 'x'") as caught:
        client.predict("echo", sample, strict=True)
    assert caught.value.reason is Reason.INPUT_OUT_OF_RANGE
    assert "Infer" not in server.calls


def test_values_that_would_wrap_the_modulus_are_refused(client: Client, server: Any, sample: np.ndarray) -> None:
    sample[0, 0] = 2.0**60
    with warnings.catch_warnings(), pytest.raises(InputError, match="too large for the modulus"):
        warnings.simplefilter("ignore", RangeWarning)
        client.predict("echo", sample)
    assert "Infer" not in server.calls


def test_unknown_model_is_a_typed_error(client: Client) -> None:
    with pytest.raises(ServerError, match="cannot get model 'nothing'") as caught:
        client.predict("nothing", np.zeros(3))
    assert (caught.value.reason, caught.value.code) == (Reason.MODEL_UNKNOWN, "NOT_FOUND")


def test_a_busy_server_says_when_to_come_back(client: Client, server: Any, sample: np.ndarray) -> None:
    server.failures = [Failure("SERVER_BUSY", "queue full", retry_after_seconds=7.0)]
    with pytest.raises(ServerBusy) as caught:
        client.predict("echo", sample, timeout=5.0)
    assert (caught.value.reason, caught.value.retry_after) == (Reason.SERVER_BUSY, 7.0)
    assert server.calls.count("Infer") == 1, "it would be too late"


def test_a_lost_worker_is_retried_with_the_same_request_id(client: Client, server: Any, sample: np.ndarray) -> None:
    server.failures = [Failure("WORKER_LOST", "died"), Failure("WORKER_LOST", "died")]
    assert client.predict("echo", sample).index == 5
    assert len(server.requests) == 3
    assert len({r.request_id for r in server.requests}) == 1


def test_models_spec_and_estimate(client: Client) -> None:
    assert [(m.name, m.default_version) for m in client.models()] == [("echo", "1")]
    assert client.spec("echo").params.degree == 4096
    assert client.estimate("echo").counts == {"rotate": 3}


def test_no_server_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(ServerUnreachable, match="need a running server") as caught:
        Client.connect("127.0.0.1:1", home=tmp_path, timeout=2.0)
    assert caught.value.reason is Reason.SERVER_UNREACHABLE


def test_a_server_of_another_wire_version_is_refused(server: Any, tmp_path: Path) -> None:
    server.info = type(server.info)("fake", 99, 1, 1, 1)
    with pytest.raises(ServerError, match="wire version 99") as caught:
        Client.connect(server.address, home=tmp_path)
    assert caught.value.reason is Reason.VERSION_UNKNOWN


def test_a_request_above_the_servers_message_limit_is_not_sent(server: Any, sample: np.ndarray, tmp_path: Path) -> None:
    server.info = type(server.info)("fake", 1, 5000, 1 << 30, 1 << 15)
    with Client.connect(server.address, home=tmp_path) as small, pytest.raises(ServerError) as caught:
        small.predict("echo", sample)
    assert caught.value.reason is Reason.LIMIT_EXCEEDED
    assert "Infer" not in server.calls


def test_keys_above_the_servers_upload_limit_are_not_made(server: Any, sample: np.ndarray, tmp_path: Path) -> None:
    server.info = type(server.info)("fake", 1, 1 << 26, 1000, 1 << 15)
    with Client.connect(server.address, home=tmp_path) as small, pytest.raises(ServerError) as caught:
        small.predict("echo", sample)
    assert caught.value.reason is Reason.LIMIT_EXCEEDED
    assert "CreateUpload" not in server.calls


def test_reprs_hold_no_secret_and_no_capability(client: Client, server: Any) -> None:
    ready = client.prepare("echo")
    text = repr((client, ready, ready.secret, ready.entry))
    assert ready.key_set_id not in text
    assert "redacted" in text
    assert isinstance(ready.spec.params, CkksParams)
