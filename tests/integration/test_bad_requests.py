"""Hostile and mistaken clients: what the server answers to bad bytes, and that it then serves as before."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import CiphertextData
from he_runtime.wire import HEADER_BYTES, encode_ciphertexts
from protos.gen.secateur.v1 import keys_pb2
from tests.integration.refusals import refused
from tests.integration.stack import MODELS, RawClient, Stack, sample
from tests.server.harness import failure
from tests.wire.arrays import resealed

pytestmark = pytest.mark.usefixtures("still_serving")

QUICK, OTHER = MODELS
COUNT, LEVEL, SIZE, SCALE = HEADER_BYTES, HEADER_BYTES + 8, HEADER_BYTES + 12, HEADER_BYTES + 16
RESIDUES = HEADER_BYTES + 8 + 16 + 8  # body head, ciphertext head, polynomial head


def _flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def _patched(position: int, layout: str, value: Any) -> Callable[[RawClient], bytes]:
    """The good request with one field replaced, under a digest that is right."""
    return lambda raw: resealed(raw.request_bytes, lambda data: struct.pack_into(layout, data, position, value))


def _encoded(raw: RawClient, ciphertexts: list[CiphertextData]) -> bytes:
    return encode_ciphertexts(ciphertexts, raw.spec.params)


def _tripled(raw: RawClient) -> bytes:
    """A ciphertext of three polynomials, which only a product has."""
    border, params = raw.spec.input, raw.spec.params
    primes = params.primes[: border.level + 1]
    rows = np.stack([np.full(params.degree, 5, dtype=np.uint64) for _ in primes])
    return _encoded(raw, [CiphertextData(border.level, border.scale, (rows, rows, rows))])


def _transparent(raw: RawClient) -> bytes:
    """A ciphertext whose second polynomial is zero: SEAL would throw, and everyone could read it."""

    def zero_last(data: bytearray) -> None:
        half = (len(data) - HEADER_BYTES - 8 - 16) // 2
        data[-half + 8 :] = bytes(half - 8)

    rows = np.ones((raw.spec.input.level + 1, raw.spec.params.degree), dtype=np.uint64)
    full = _encoded(raw, [CiphertextData(raw.spec.input.level, raw.spec.input.scale, (rows, rows))])
    return resealed(full, zero_last)


def _of_other_parameters(raw: RawClient) -> bytes:
    degree = raw.spec.params.degree
    bits = [40.0, 40.0, 41.0]
    primes = find_primes(degree, bits)
    params = CkksParams(degree, tuple(primes[:2]), tuple(primes[2:]))
    rows = np.ones((2, degree), dtype=np.uint64)
    return encode_ciphertexts([CiphertextData(1, 2.0**30, (rows, rows))], params)


CIPHERTEXTS: dict[str, tuple[Callable[[RawClient], bytes], str]] = {
    "empty": (lambda r: b"", "BYTES_TRUNCATED"),
    "half a header": (lambda r: r.request_bytes[:40], "BYTES_TRUNCATED"),
    "only a header": (lambda r: r.request_bytes[:HEADER_BYTES], "BYTES_TRUNCATED"),
    "half": (lambda r: r.request_bytes[: len(r.request_bytes) // 2], "BYTES_TRUNCATED"),
    "all but a byte": (lambda r: r.request_bytes[:-1], "BYTES_TRUNCATED"),
    "a byte more": (lambda r: r.request_bytes + b"\0", "BYTES_MALFORMED"),
    "a flipped bit in the magic": (lambda r: _flipped(r.request_bytes, 0), "BYTES_MALFORMED"),
    "a flipped bit in the version": (lambda r: _flipped(r.request_bytes, 4), "VERSION_UNKNOWN"),
    "a flipped bit in the kind": (lambda r: _flipped(r.request_bytes, 6), "BYTES_MALFORMED"),
    "a flipped bit in the length": (lambda r: _flipped(r.request_bytes, 14), "BYTES_TRUNCATED"),
    "a flipped bit in the parameters": (lambda r: _flipped(r.request_bytes, 20), "DIGEST_MISMATCH"),
    "a flipped bit in the digest": (lambda r: _flipped(r.request_bytes, 50), "DIGEST_MISMATCH"),
    "a flipped bit in the scale": (lambda r: _flipped(r.request_bytes, SCALE), "DIGEST_MISMATCH"),
    "a flipped bit in a residue": (lambda r: _flipped(r.request_bytes, RESIDUES), "DIGEST_MISMATCH"),
    "a flipped last bit": (lambda r: _flipped(r.request_bytes, len(r.request_bytes) - 1), "DIGEST_MISMATCH"),
    "a residue equal to its prime": (
        lambda r: _patched(RESIDUES, "<Q", r.spec.params.primes[0])(r),
        "RESIDUE_OUT_OF_RANGE",
    ),
    "a residue of 64 bits": (_patched(RESIDUES, "<Q", 2**64 - 1), "RESIDUE_OUT_OF_RANGE"),
    "a lower level": (lambda r: _encoded(r, r.encrypted(level=r.spec.input.level - 1)), "LEVEL_MISMATCH"),
    "a level above the chain": (_patched(LEVEL, "<I", 9), "LEVEL_MISMATCH"),
    "a level of 32 bits": (_patched(LEVEL, "<I", 2**32 - 1), "LEVEL_MISMATCH"),
    "twice the scale": (lambda r: _encoded(r, r.encrypted(factor=2.0)), "SCALE_MISMATCH"),
    "a scale off by 2^-20": (lambda r: _encoded(r, r.encrypted(factor=1 + 2.0**-20)), "SCALE_MISMATCH"),
    "a scale of NaN": (_patched(SCALE, "<d", float("nan")), "SCALE_MISMATCH"),
    "an infinite scale": (_patched(SCALE, "<d", float("inf")), "SCALE_MISMATCH"),
    "a scale of 0": (_patched(SCALE, "<d", 0.0), "SCALE_MISMATCH"),
    "a negative scale": (_patched(SCALE, "<d", -(2.0**30)), "SCALE_MISMATCH"),
    "a subnormal scale": (_patched(SCALE, "<d", 5e-324), "SCALE_MISMATCH"),
    "a scale above the modulus": (_patched(SCALE, "<d", 2.0**900), "SCALE_MISMATCH"),
    "sixteen polynomials": (_patched(SIZE, "<I", 16), "SIZE_MISMATCH"),
    "one polynomial": (_patched(SIZE, "<I", 1), "SIZE_MISMATCH"),
    "three polynomials": (_tripled, "LIMIT_EXCEEDED"),  # more bytes than the model takes
    "no ciphertext": (lambda r: _encoded(r, []), "SIZE_MISMATCH"),
    "a ciphertext too many": (lambda r: _encoded(r, r.encrypted() * 2), "LIMIT_EXCEEDED"),
    "2^32 - 1 ciphertexts": (_patched(COUNT, "<I", 2**32 - 1), "LIMIT_EXCEEDED"),
    "another ring degree": (_patched(COUNT + 4, "<I", 1 << 17), "SIZE_MISMATCH"),
    "a form of polynomial that there is not": (_patched(RESIDUES - 8, "<I", 7), "BYTES_MALFORMED"),
    "a seed where residues must be": (_patched(RESIDUES - 8, "<I", 1), "BYTES_MALFORMED"),
    "2^32 - 1 rows": (_patched(RESIDUES - 4, "<I", 2**32 - 1), "SIZE_MISMATCH"),
    "transparent": (_transparent, "BYTES_MALFORMED"),
    "other parameters": (_of_other_parameters, "PARAMETERS_INVALID"),
    "an evaluation key": (lambda r: r.key_file[:100_000], "BYTES_MALFORMED"),
    "a zstd bomb's head": (lambda r: b"\x28\xb5\x2f\xfd" + bytes(100), "BYTES_MALFORMED"),
    "a pickle": (lambda r: b"\x80\x04cos\nsystem\n(S'true'\ntR." + bytes(100), "BYTES_MALFORMED"),
}


@pytest.mark.parametrize("name", CIPHERTEXTS)
def test_bad_ciphertexts(raw: RawClient, name: str) -> None:
    make, reason = CIPHERTEXTS[name]
    refused(lambda: raw.infer(make(raw)), reason)


REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown model": ({"model": "nope"}, "MODEL_UNKNOWN"),
    "a path for a model": ({"model": "../models/pooled"}, "MODEL_UNKNOWN"),
    "no model": ({"model": ""}, "MODEL_UNKNOWN"),
    "a model of 100 KB": ({"model": "x" * 100_000}, "MODEL_UNKNOWN"),
    "unknown version": ({"version": "2"}, "MODEL_UNKNOWN"),
    "a path for a version": ({"version": "../../mlp/1"}, "MODEL_UNKNOWN"),
    "a version of an unknown plan format": ({"version": "9"}, "PLAN_VERSION_UNKNOWN"),
    "keys of other parameters": ({"model": OTHER, "client_spec_digest": ""}, "KEY_PARAMETERS_DIFFER"),
    "another spec": ({"client_spec_digest": "00" * 32}, "VERSION_UNKNOWN"),
    "no keys": ({"key_set_id": ""}, "KEY_SET_UNKNOWN"),
    "guessed keys": ({"key_set_id": "0" * 32}, "KEY_SET_UNKNOWN"),
    "a path for keys": ({"key_set_id": "../keys.sqlite3"}, "KEY_SET_UNKNOWN"),
    "a long request id": ({"request_id": "x" * 129}, "LIMIT_EXCEEDED"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_bad_requests(raw: RawClient, name: str) -> None:
    changes, reason = REQUESTS[name]
    refused(lambda: raw.infer(**changes), reason)


def test_another_clients_keys_are_no_keys(stack: Stack, raw: RawClient) -> None:
    """Only who committed a set knows its id; its digest, or an id of one digit less, opens nothing."""
    digest = stack.stored()["blobs"][0]
    answers = {
        refused(lambda g=guess: raw.infer(key_set_id=g), "KEY_SET_UNKNOWN").message
        for guess in (digest, digest[:32], raw.key_set_id[:-1], raw.key_set_id.upper() + " ")
    }
    assert len(answers) == 1


def test_anothers_ciphertext_under_my_keys_yields_noise(stack: Stack, raw: RawClient) -> None:
    """The server cannot tell whose ciphertext it is, and need not: only garbage comes of it, for both."""
    stranger = RawClient(raw.caller, raw.model, raw.spec, type(raw.secret).generate(raw.spec.params))
    reply = raw.infer(stranger.request_bytes).ciphertexts
    expected = stack.expected(QUICK, sample(QUICK))
    for reader in (raw, stranger):
        assert np.abs(reader.decrypt(reply) - expected).max() > 1e3 * stack.plans[QUICK].error_bound


def test_a_message_over_the_limit(raw: RawClient) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw.caller.infer(raw.key_set_id, bytes(65 << 20), model=QUICK)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_model_service_refuses_alike(raw: RawClient) -> None:
    refused(lambda: raw.caller.get_model("nope"), "MODEL_UNKNOWN")
    refused(lambda: raw.caller.get_model(QUICK, "2"), "MODEL_UNKNOWN")
    refused(lambda: raw.caller.get_model(QUICK, "9"), "PLAN_VERSION_UNKNOWN")


@pytest.mark.parametrize("method", ["InferenceService/Infer", "KeyService/CreateUpload", "ModelService/GetModel"])
def test_bytes_that_are_no_protobuf(raw: RawClient, method: str) -> None:
    call = raw.caller.channel.unary_unary(f"/secateur.v1.{method}")
    refused(lambda: call(b"\xff" * 100, timeout=20), "BYTES_MALFORMED")


def test_calls_of_another_form_than_the_service_has(raw: RawClient) -> None:
    unknown = raw.caller.channel.unary_unary("/secateur.v1.InferenceService/Steal")
    assert failure(lambda: unknown(b"", timeout=20)).code is grpc.StatusCode.UNIMPLEMENTED
    streamed = raw.caller.channel.stream_unary("/secateur.v1.ModelService/ListModels")
    refused(lambda: streamed(iter(()), timeout=20), "BYTES_TRUNCATED")


def test_no_field_takes_a_secret_key(raw: RawClient, tmp_path: Any) -> None:
    """SEAL's bytes of a secret in every bytes field: refused as what they are not, and nothing is kept."""
    raw.secret.save(tmp_path / "secret.key")
    smuggled = (tmp_path / "secret.key").read_bytes()
    refused(lambda: raw.infer(smuggled), "BYTES_MALFORMED")
    refused(lambda: raw.upload(smuggled), "BYTES_MALFORMED")
    with pytest.raises(ValueError):
        keys_pb2.UploadChunkRequest(secret_key=smuggled)  # type: ignore[call-arg]
