"""Replies that are not what the spec promised are refused before anything is decrypted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client import Client, ServerError, ServerUntrusted
from he_runtime.client_spec import ClientSpec
from he_runtime.errors import CiphertextMismatch, Reason, SecateurError, WireError
from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import CiphertextData
from he_runtime.wire import encode_ciphertexts
from protos.native import InferenceReply


def _ciphertext(params: CkksParams, level: int, scale: float, size: int = 2) -> CiphertextData:
    rng = np.random.default_rng(level)
    rows = [rng.integers(0, q, params.degree, dtype=np.uint64) for q in params.primes[: level + 1]]
    return CiphertextData(level, scale, (np.stack(rows),) * size)


def _other(params: CkksParams) -> CkksParams:
    primes = find_primes(params.degree, [37.0, 33.0, 33.0])
    return CkksParams(params.degree, tuple(primes[:2]), (primes[2],))


def _one(spec: ClientSpec, level: int = 0, scale: float = 2.0**25, size: int = 2) -> bytes:
    return encode_ciphertexts([_ciphertext(spec.params, level, scale, size)], spec.params)


def _flipped(spec: ClientSpec) -> bytes:
    data = bytearray(_one(spec))
    data[5000] ^= 1
    return bytes(data)


def _foreign(spec: ClientSpec) -> bytes:
    other = _other(spec.params)
    return encode_ciphertexts([_ciphertext(other, 0, 2.0**25)], other)


REPLIES: dict[str, tuple[Callable[[ClientSpec, Any], bytes], type[SecateurError], Reason]] = {
    "wrong level": (lambda s, c: _one(s, level=1), CiphertextMismatch, Reason.LEVEL_MISMATCH),
    "wrong scale": (lambda s, c: _one(s, scale=2.0**24), CiphertextMismatch, Reason.SCALE_MISMATCH),
    "slightly wrong scale": (lambda s, c: _one(s, scale=2.0**25 * 1.001), CiphertextMismatch, Reason.SCALE_MISMATCH),
    "three polynomials": (lambda s, c: _one(s, size=3), CiphertextMismatch, Reason.SIZE_MISMATCH),
    "no ciphertext": (lambda s, c: encode_ciphertexts([], s.params), ServerUntrusted, Reason.SERVER_UNTRUSTED),
    "two ciphertexts": (
        lambda s, c: encode_ciphertexts([_ciphertext(s.params, 0, 2.0**25)] * 2, s.params),
        WireError,
        Reason.LIMIT_EXCEEDED,
    ),
    "the request itself": (lambda s, c: c.ciphertexts, CiphertextMismatch, Reason.LEVEL_MISMATCH),
    "other parameters": (lambda s, c: _foreign(s), ServerUntrusted, Reason.SERVER_UNTRUSTED),
    "truncated": (lambda s, c: _one(s)[:-1], WireError, Reason.BYTES_TRUNCATED),
    "only a header": (lambda s, c: _one(s)[:80], WireError, Reason.BYTES_TRUNCATED),
    "empty": (lambda s, c: b"", WireError, Reason.BYTES_TRUNCATED),
    "a flipped bit": (lambda s, c: _flipped(s), WireError, Reason.DIGEST_MISMATCH),
    "bytes after the end": (lambda s, c: _one(s) + b"\0", WireError, Reason.BYTES_MALFORMED),
    "huge": (lambda s, c: bytes(1 << 22), ServerUntrusted, Reason.SERVER_UNTRUSTED),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_bad_reply_is_refused_before_decryption(
    client: Client, server: Any, sample: np.ndarray, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    answer, kind, reason = REPLIES[name]
    server.answer = answer
    monkeypatch.setattr("client.run.decrypt", lambda *a: pytest.fail("decrypted"))
    with pytest.raises(kind) as caught:
        client.predict("echo", sample)
    assert caught.value.reason is reason


def test_a_seeded_reply_is_refused(
    client: Client, server: Any, spec: ClientSpec, changed: Any, sample: np.ndarray
) -> None:
    server.specs["echo"] = changed(output=replace(spec.output, level=1))
    server.answer = lambda s, c: c.ciphertexts
    with pytest.raises(CiphertextMismatch, match="2 full ones"):
        client.predict("echo", sample)


def test_a_good_reply_after_bad_ones_is_accepted(client: Client, server: Any, sample: np.ndarray) -> None:
    honest, server.answer = server.answer, REPLIES["truncated"][0]
    with pytest.raises(WireError):
        client.predict("echo", sample)
    server.answer = honest
    assert client.predict("echo", sample).index == 5


@pytest.mark.parametrize("change", [{"model": "other"}, {"version": "9"}, {"plan_digest": "00" * 32}])
def test_a_reply_of_another_model_version_or_plan_is_refused(
    client: Client, server: Any, sample: np.ndarray, change: dict[str, str]
) -> None:
    def bend(reply: InferenceReply) -> InferenceReply:
        return replace(reply, **change)  # type: ignore[arg-type]

    server.bend_reply = bend
    with pytest.raises(ServerUntrusted, match="another model, version or plan"):
        client.predict("echo", sample)


def test_a_reply_above_the_message_limit_is_a_typed_error(server: Any, sample: np.ndarray, tmp_path: Any) -> None:
    from client import Limits

    server.answer = lambda s, c: bytes(2 << 20)
    with (
        Client.connect(server.address, home=tmp_path, limits=Limits(max_message_bytes=1 << 20)) as small,
        pytest.raises(ServerError) as caught,
    ):
        small.predict("echo", sample)
    assert caught.value.reason is Reason.LIMIT_EXCEEDED


def test_the_servers_words_cannot_reach_the_terminal_raw(client: Client, server: Any, sample: np.ndarray) -> None:
    from protos.status import Failure

    server.failures = [Failure("INTERNAL", "\x1b]0;owned\x07" + "x" * 3000)]
    with pytest.raises(ServerError) as caught:
        client.predict("echo", sample)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 600
