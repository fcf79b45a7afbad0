"""Bad key sets and broken uploads against the real store and worker: refused whole, resumable, never half-committed."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from client import ServerError
from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import RELINEARIZATION, KeyRequest, KeySetSpec
from he_runtime.wire import HEADER_BYTES, encode_key, read_key_set, read_key_table
from protos.gen.secateur.v1 import keys_pb2
from tests.integration.middleman import Middleman
from tests.integration.refusals import refused
from tests.integration.stack import MODELS, RawClient, Stack, pack_keys, sample
from tests.server.harness import failure
from tests.wire.arrays import resealed

pytestmark = pytest.mark.usefixtures("still_serving")

QUICK, OTHER = MODELS
ROW = struct.Struct("<IIQ32s")
FIRST_ROW = HEADER_BYTES + 8


@pytest.fixture(autouse=True)
def nothing_is_kept(stack: Stack, raw: RawClient, still_serving: None) -> Iterator[None]:
    """Whatever a test tried to upload, the store holds afterwards what it held before."""
    before = stack.stored()
    yield
    assert stack.stored() == before


def _table_bytes(data: bytes) -> int:
    (count,) = struct.unpack_from("<I", data, HEADER_BYTES)
    return 8 + ROW.size * int(count)


def _sealed(data: bytes, edit: Callable[[bytearray], object]) -> bytes:
    """The key set after `edit`, with the digest that its sender would put over the table."""
    return resealed(data, edit, _table_bytes(data))


def _with_record(raw: RawClient, index: int, edit: Callable[[bytearray], object]) -> bytes:
    """The key set with one record edited, and every digest made right again."""
    row = read_key_table(io.BytesIO(raw.key_file), raw.spec.params)[index]
    record = resealed(raw.key_file[row.offset : row.offset + row.length], edit)

    def put(data: bytearray) -> None:
        data[row.offset : row.offset + row.length] = record
        at = FIRST_ROW + ROW.size * index
        ROW.pack_into(data, at, row.element, row.level, row.length, record[48:80])

    return _sealed(raw.key_file, put)


def _residue(value: int) -> Callable[[RawClient], bytes]:
    return lambda raw: _with_record(raw, 0, lambda data: struct.pack_into("<Q", data, HEADER_BYTES + 16 + 8, value))


def _without(raw: RawClient, element: int) -> bytes:
    return pack_keys(raw.secret, KeySetSpec(tuple(r for r in raw.spec.keys.requests if r.element != element)))


def _cut_too_low(raw: RawClient) -> bytes:
    """Every key one level lower than the plan uses it at, where there is a lower one."""
    lowered = tuple(replace(r, level=max(0, r.level - 1)) for r in raw.spec.keys.requests)
    return pack_keys(raw.secret, KeySetSpec(lowered))


def _rotation(raw: RawClient) -> int:
    return max(r.element for r in raw.spec.keys.requests)


def _of_other_parameters(raw: RawClient) -> bytes:
    primes = find_primes(raw.spec.params.degree, [40.0, 40.0, 41.0])
    params = CkksParams(raw.spec.params.degree, tuple(primes[:2]), tuple(primes[2:]))
    return pack_keys(type(raw.secret).generate(params), KeySetSpec((KeyRequest(3, 0),)))


def _zero_uniform_half(raw: RawClient) -> bytes:
    """A key in full whose a_i are zero, so that its b_i publish what they should hide."""
    (record,) = read_key_set(
        io.BytesIO(pack_keys(raw.secret, KeySetSpec((KeyRequest(3, 0),)))),
        raw.spec.params,
    )
    (b, _), zero = record.digits[0], np.zeros((2, raw.spec.params.degree), dtype=np.uint64)
    full = replace(record, digits=((b, np.ones_like(zero)),))
    data = bytearray(encode_key(full, raw.spec.params))
    data[-zero.nbytes :] = zero.tobytes()
    sealed = resealed(bytes(data), lambda _: None)
    table = struct.pack("<II", 1, raw.spec.params.degree) + ROW.pack(3, 0, len(sealed), sealed[48:80])
    header = raw.key_file[:8] + struct.pack("<Q", len(table) + len(sealed)) + raw.key_file[16:HEADER_BYTES]
    return _sealed(header + table + sealed, lambda _: None)


def _flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


KEYS: dict[str, tuple[Callable[[RawClient], bytes], str]] = {
    "half a header": (lambda r: r.key_file[:40], "BYTES_TRUNCATED"),
    "half a table": (lambda r: r.key_file[: HEADER_BYTES + 100], "BYTES_TRUNCATED"),
    "half": (lambda r: r.key_file[: len(r.key_file) // 2], "BYTES_TRUNCATED"),
    "all but a byte": (lambda r: r.key_file[:-1], "BYTES_TRUNCATED"),
    "a byte more": (lambda r: r.key_file + b"\0", "BYTES_MALFORMED"),
    "a flipped bit in the magic": (lambda r: _flipped(r.key_file, 1), "BYTES_MALFORMED"),
    "a flipped bit in the version": (lambda r: _flipped(r.key_file, 4), "VERSION_UNKNOWN"),
    "a flipped bit in the table": (lambda r: _flipped(r.key_file, FIRST_ROW), "DIGEST_MISMATCH"),
    "a flipped bit in a record": (lambda r: _flipped(r.key_file, len(r.key_file) // 2), "DIGEST_MISMATCH"),
    "a flipped last bit": (lambda r: _flipped(r.key_file, len(r.key_file) - 1), "DIGEST_MISMATCH"),
    "a residue equal to its prime": (
        lambda r: _residue(r.spec.params.primes[0])(r),
        "RESIDUE_OUT_OF_RANGE",
    ),
    "a residue of 64 bits": (_residue(2**64 - 1), "RESIDUE_OUT_OF_RANGE"),
    "other parameters": (_of_other_parameters, "KEY_PARAMETERS_DIFFER"),
    "no rotation key": (lambda r: _without(r, _rotation(r)), "KEY_MISSING"),
    "no relinearization key": (lambda r: _without(r, RELINEARIZATION), "KEY_MISSING"),
    "keys cut too low": (_cut_too_low, "KEY_MISSING"),
    "no keys at all": (lambda r: pack_keys(r.secret, KeySetSpec(())), "KEY_MISSING"),
    "2^32 - 1 keys": (
        lambda r: resealed(r.key_file, lambda d: struct.pack_into("<I", d, HEADER_BYTES, 2**32 - 1), 8),
        "LIMIT_EXCEEDED",
    ),
    "another ring degree": (
        lambda r: _sealed(r.key_file, lambda d: struct.pack_into("<I", d, HEADER_BYTES + 4, 1 << 20)),
        "SIZE_MISMATCH",
    ),
    "an even element": (
        lambda r: _sealed(r.key_file, lambda d: struct.pack_into("<I", d, FIRST_ROW + ROW.size, 4)),
        "BYTES_MALFORMED",
    ),
    "a level above the chain": (
        lambda r: _sealed(r.key_file, lambda d: struct.pack_into("<I", d, FIRST_ROW + 4, 63)),
        "LEVEL_MISMATCH",
    ),
    "a record of 2^63 bytes": (
        lambda r: _sealed(r.key_file, lambda d: struct.pack_into("<Q", d, FIRST_ROW + 8, 1 << 63)),
        "SIZE_MISMATCH",
    ),
    "digits that there are not": (
        lambda r: _with_record(r, 0, lambda d: struct.pack_into("<I", d, HEADER_BYTES + 12, 2**31)),
        "SIZE_MISMATCH",
    ),
    "an unknown gadget": (
        lambda r: _with_record(r, 0, lambda d: struct.pack_into("<I", d, HEADER_BYTES + 8, 2)),
        "VERSION_UNKNOWN",
    ),
    "a uniform half of zero": (_zero_uniform_half, "BYTES_MALFORMED"),
    "a ciphertext": (lambda r: r.request_bytes, "BYTES_MALFORMED"),
}


@pytest.mark.parametrize("name", KEYS)
def test_bad_key_sets_are_refused_and_forgotten(raw: RawClient, name: str) -> None:
    make, reason = KEYS[name]
    data = make(raw)
    upload_id = raw.caller.begin(data, **raw.digests)
    assert raw.caller.send(upload_id, data, chunk=1 << 20) == len(data)
    message = refused(lambda: raw.caller.commit(upload_id), reason).message
    assert upload_id not in message
    assert failure(lambda: raw.caller.offset(upload_id)).reason == "UPLOAD_UNKNOWN"


def test_a_missing_rotation_key_is_named(raw: RawClient) -> None:
    element = _rotation(raw)
    message = refused(lambda: raw.upload(_without(raw, element)), "KEY_MISSING").message
    assert f"Galois element {element}" in message


def test_keys_that_were_not_checked_at_commit_are_refused_in_use(own: Any) -> None:
    with own(KEYS_VALIDATE_ON_COMMIT="false") as served, served.channel() as channel:
        lazy = RawClient.make(channel, QUICK)
        few = lazy.upload(_without(lazy, _rotation(lazy))).key_set_id
        junk = lazy.upload(lazy.key_file[:-1]).key_set_id
        refused(lambda: lazy.infer(key_set_id=few), "KEY_MISSING")
        refused(lambda: lazy.infer(key_set_id=junk), "BYTES_TRUNCATED")
        assert lazy.infer().ciphertexts


def test_a_wrong_digest_is_data_loss(raw: RawClient) -> None:
    data = raw.key_file
    upload_id = raw.caller.begin(data, sha256="ab" * 32, **raw.digests)
    raw.caller.send(upload_id, data, chunk=1 << 20)
    refused(lambda: raw.caller.commit(upload_id), "DIGEST_MISMATCH", grpc.StatusCode.DATA_LOSS)
    assert failure(lambda: raw.caller.offset(upload_id)).reason == "UPLOAD_UNKNOWN"


OFFERS: dict[str, tuple[dict[str, Any], str]] = {
    "more than the model's keys": ({"total_bytes": 1 << 26}, "LIMIT_EXCEEDED"),
    "2^63 bytes": ({"total_bytes": 1 << 63}, "LIMIT_EXCEEDED"),
    "no bytes": ({"total_bytes": 0}, "BYTES_MALFORMED"),
    "no digest": ({"sha256": ""}, "BYTES_MALFORMED"),
    "a path for a digest": ({"sha256": "../" * 20 + "etc/passwd"}, "BYTES_MALFORMED"),
    "other parameters": ({"params_digest": "00" * 32}, "KEY_PARAMETERS_DIFFER"),
    "an unknown spec": ({"client_spec_digest": "00" * 32}, "MODEL_UNKNOWN"),
    "a path for a spec": ({"client_spec_digest": "../../etc"}, "MODEL_UNKNOWN"),
}


@pytest.mark.parametrize("name", OFFERS)
def test_bad_offers_are_refused_before_a_byte_moves(raw: RawClient, name: str) -> None:
    changes, reason = OFFERS[name]
    refused(lambda: raw.caller.offer(raw.key_file[:-5], **{**raw.digests, **changes}), reason)


def test_chunks_that_do_not_belong(raw: RawClient) -> None:
    data = raw.key_file[:-3]
    upload_id = raw.caller.begin(data, **raw.digests)
    refused(lambda: raw.caller.send(upload_id, b"x", 1), "UPLOAD_OFFSET_WRONG")
    refused(lambda: raw.caller.send(upload_id, b"x", 2**64 - 1), "UPLOAD_OFFSET_WRONG")
    refused(lambda: raw.caller.send(upload_id, bytes((1 << 20) + 1), chunk=2 << 20), "LIMIT_EXCEEDED")
    raw.caller.send(upload_id, data, chunk=1 << 20)
    refused(lambda: raw.caller.send(upload_id, b"beyond", len(data)), "SIZE_MISMATCH")
    for stranger in ("", "0" * 32, "../../server.toml", "/etc/passwd"):
        refused(lambda s=stranger: raw.caller.send(s, b"x"), "UPLOAD_UNKNOWN")
    refused(lambda: raw.caller.keys.UploadChunks(iter(()), timeout=20), "BYTES_TRUNCATED")
    refused(lambda: raw.caller.commit(upload_id), "BYTES_TRUNCATED")  # and it is gone: three bytes are missing


def test_an_upload_that_stops_half_way_is_resumed(raw: RawClient) -> None:
    """Not committed, not visible, and no byte sent twice; then whole and usable like any other."""
    mine = RawClient(raw.caller, raw.model, raw.spec, type(raw.secret).generate(raw.spec.params))
    data, half = mine.key_file, len(mine.key_file) // 2
    upload_id = mine.caller.begin(data, **mine.digests)

    def breaks() -> Iterator[keys_pb2.UploadChunkRequest]:
        yield keys_pb2.UploadChunkRequest(upload_id=upload_id, offset=0, data=data[:half])
        raise ConnectionError("the cable")

    with pytest.raises(grpc.RpcError):
        mine.caller.keys.UploadChunks(breaks(), timeout=20)
    early = refused(lambda: mine.caller.commit(upload_id), "UPLOAD_INCOMPLETE")
    at = mine.caller.offset(upload_id)
    assert at in (0, half) and early.metadata["committed_offset"] == str(at)
    refused(lambda: mine.infer(key_set_id=upload_id), "KEY_SET_UNKNOWN")
    assert mine.caller.send(upload_id, data[at:], at, chunk=1 << 20) == len(data)
    mine.key_set_id = mine.caller.commit(upload_id).key_set_id
    assert mine.infer().ciphertexts
    mine.caller.keys.DeleteKeySet(keys_pb2.DeleteKeySetRequest(key_set_id=mine.key_set_id), timeout=20)
    refused(mine.infer, "KEY_SET_UNKNOWN")


def test_the_client_resumes_a_cut_upload_by_itself(own: Any, tmp_path: Path) -> None:
    with own() as served, Middleman(served) as between:
        between.cuts = 1
        with between.connect(tmp_path / "home") as client:
            served.check(client)
            assert between.calls.count("UploadChunks") == 2
            most = client.prepare(QUICK).key_bytes + 2 * (256 << 10)
            assert sum(between.chunk_bytes) < most, "at most a chunk was sent again"
        assert len(served.stored()["blobs"]) == 1 and not served.stored()["parts"]


def test_a_half_upload_survives_a_restart_and_the_next_client_finishes_it(
    own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.upload._BACKOFF_SECONDS", 0.001)
    with own() as served:
        with Middleman(served) as between, between.connect(tmp_path / "home") as client:
            between.cuts = 1000
            with pytest.raises(ServerError) as caught:
                client.predict(QUICK, sample(QUICK))
            assert caught.value.reason == "SERVER_UNREACHABLE"
            address = between.address
        assert not served.stored()["blobs"] and len(served.stored()["parts"]) == 1
        served.restart()
        with Middleman(served, address) as between, between.connect(tmp_path / "home") as client:
            served.check(client)
            assert "CreateUpload" not in between.calls and "GetUpload" in between.calls
        assert len(served.stored()["blobs"]) == 1 and not served.stored()["parts"]
