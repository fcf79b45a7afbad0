"""A hostile server's spec is refused before a key is made."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import Client, Limits, ServerUntrusted
from client.trust import check_spec, parse_spec
from he_runtime.client_spec import ClientSpec
from he_runtime.errors import ParameterError, PlanError, Reason, SecateurError
from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import KeyRequest, KeySetSpec

LIMITS = Limits()


def _record(spec: ClientSpec) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(spec.to_json())
    return record


def _bytes(spec: ClientSpec, **changes: Any) -> bytes:
    return json.dumps({**_record(spec), **changes}).encode()


def _params(spec: ClientSpec, **changes: Any) -> dict[str, Any]:
    return {**spec.params.to_json(), **changes}


def test_an_honest_spec_is_accepted_unchanged(spec: ClientSpec) -> None:
    read = parse_spec(spec.to_json(), LIMITS)
    assert read.digest == spec.digest


BAD_PARAMS: dict[str, tuple[Callable[[ClientSpec], dict[str, Any]], Reason]] = {
    "oversized QP": (lambda s: _params(s, primes=find_primes(4096, [38.0, 36.0])), Reason.PARAMETERS_INSECURE),
    "marked insecure": (lambda s: _params(s, insecure=True), Reason.PARAMETERS_INSECURE),
    "insecure and far over": (
        lambda s: _params(s, insecure=True, primes=find_primes(4096, [60.0] * 8)),
        Reason.PARAMETERS_INSECURE,
    ),
    "tiny ring": (
        lambda s: {"degree": 1024, "primes": find_primes(1024, [30.0]), "special": [12289], "insecure": True},
        Reason.SERVER_UNTRUSTED,  # the slot maps do not fit it, whatever its security
    ),
    "repeated prime": (lambda s: _params(s, primes=[s.params.primes[1]] * 2), Reason.SERVER_UNTRUSTED),
    "special repeats live": (lambda s: _params(s, special=[s.params.primes[0]]), Reason.SERVER_UNTRUSTED),
    "composite": (lambda s: _params(s, primes=[8193 * 40961, s.params.primes[1]]), Reason.SERVER_UNTRUSTED),
    "prime not 1 mod 2N": (lambda s: _params(s, primes=[(1 << 31) - 1, s.params.primes[1]]), Reason.SERVER_UNTRUSTED),
    "one": (lambda s: _params(s, primes=[1, s.params.primes[1]]), Reason.SERVER_UNTRUSTED),
    "negative": (lambda s: _params(s, primes=[-s.params.primes[0], s.params.primes[1]]), Reason.SERVER_UNTRUSTED),
    "a thousand primes": (lambda s: _params(s, primes=list(s.params.primes) * 500), Reason.SERVER_UNTRUSTED),
    "unknown degree": (lambda s: _params(s, degree=5000), Reason.SERVER_UNTRUSTED),
    "no special prime": (lambda s: _params(s, special=[]), Reason.SERVER_UNTRUSTED),
    "text": (lambda s: _params(s, degree="many"), Reason.SERVER_UNTRUSTED),
}


@pytest.mark.parametrize("name", BAD_PARAMS)
def test_bad_parameters_are_refused(spec: ClientSpec, name: str) -> None:
    make, reason = BAD_PARAMS[name]
    with pytest.raises(SecateurError) as caught:
        parse_spec(_bytes(spec, params=make(spec)), LIMITS)
    assert caught.value.reason is reason
    assert isinstance(caught.value, ParameterError if reason is Reason.PARAMETERS_INSECURE else ServerUntrusted)


def _forged(params: CkksParams, **changes: Any) -> CkksParams:
    """Parameters as they would be if their own constructor had checked nothing."""
    forged = object.__new__(CkksParams)
    for name, value in {**vars(params), **changes}.items():
        if name in ("degree", "primes", "special", "insecure"):
            object.__setattr__(forged, name, value)
    return forged


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (lambda p: {"primes": (*p.primes, find_primes(4096, [34.0])[0])}, Reason.SERVER_UNTRUSTED),
        (lambda p: {"primes": tuple(find_primes(4096, [39.0, 35.0]))}, Reason.PARAMETERS_INSECURE),
        (lambda p: {"primes": (8193 * 40961, p.primes[1])}, Reason.SERVER_UNTRUSTED),
        (lambda p: {"primes": (p.primes[1], p.primes[1])}, Reason.SERVER_UNTRUSTED),
        (lambda p: {"special": ()}, Reason.SERVER_UNTRUSTED),
        (lambda p: {"insecure": True}, Reason.PARAMETERS_INSECURE),
        (lambda p: {"degree": 2048}, Reason.PARAMETERS_INSECURE),
    ],
)
def test_security_is_recomputed_and_not_taken_from_the_parser(spec: ClientSpec, changes: Any, reason: Reason) -> None:
    forged = replace(spec, params=_forged(spec.params, **changes(spec.params)))
    with pytest.raises(SecateurError) as caught:
        check_spec(forged, LIMITS)
    assert caught.value.reason is reason


def test_the_table_bound_is_exact(spec: ClientSpec) -> None:
    """N=4096 allows 106 bits in all; a product one prime step above 2^106 is refused."""
    fits = CkksParams(4096, spec.params.primes, spec.params.special)
    assert fits.log2_qp <= 106 < sum((39.0, 34.0, 34.0))
    check_spec(replace(spec, params=fits), LIMITS)
    over = _forged(spec.params, primes=tuple(find_primes(4096, [38.01, 34.0])))
    assert over.log2_qp - 106 < 0.1
    with pytest.raises(ParameterError):
        check_spec(replace(spec, params=over), LIMITS)


def _bomb(count: int) -> str:
    return base64.b64encode(zlib.compress(bytes(count), 9)).decode()


BAD_FIELDS: dict[str, Callable[[ClientSpec], dict[str, Any]]] = {
    "thousands of keys": lambda s: {"keys": [[2 * i + 1, 1] for i in range(1, 4000)]},
    "a key twice": lambda s: {"keys": [[3, 1], [3, 0]]},
    "an even element": lambda s: {"keys": [[4, 1]]},
    "a key above the chain": lambda s: {"keys": [[3, 9]]},
    "thousands of ciphertexts": lambda s: {"input": {**_record(s)["input"], "ciphertexts": 4096}},
    "a slot map bomb": lambda s: {"input": {**_record(s)["input"], "slot_map": _bomb(64 << 20)}},
    "a slot map that misses outputs": lambda s: {"output": {**_record(s)["output"], "shape": [3, 4]}, "labels": []},
    "a slot map of inputs beyond the shape": lambda s: {"input": {**_record(s)["input"], "shape": [1, 2]}},
    "a slot map of other elements": lambda s: {
        "output": {
            **_record(s)["output"],
            "slot_map": base64.b64encode(zlib.compress(np.full(s.params.slots, 8, dtype="<i4").tobytes())).decode(),
        }
    },
    "a slot map that repeats one element": lambda s: {
        "output": {
            **_record(s)["output"],
            "slot_map": base64.b64encode(zlib.compress(np.zeros(s.params.slots, dtype="<i4").tobytes())).decode(),
        }
    },
    "a slot map that is not base64": lambda s: {"input": {**_record(s)["input"], "slot_map": "?"}},
    "a hundred dimensions": lambda s: {"input": {**_record(s)["input"], "shape": [8] + [1] * 100}},
    "NaN scale": lambda s: {"input": {**_record(s)["input"], "scale": "nan"}},
    "tiny scale": lambda s: {"input": {**_record(s)["input"], "scale": (2.0**5).hex()}},
    "scale above the modulus": lambda s: {"output": {**_record(s)["output"], "scale": (2.0**60).hex()}},
    "a level above the chain": lambda s: {"input": {**_record(s)["input"], "level": 2}},
    "label bomb": lambda s: {"labels": ["x" * 100_000] * 8},
    "too many labels": lambda s: {"labels": ["x"] * 9},
    "an escape sequence in a label": lambda s: {"labels": ["\x1b[2J", *"abcdefg"]},
    "an escape sequence in a name": lambda s: {"input": {**_record(s)["input"], "name": "x\r\nERROR"}},
    "infinite normalization": lambda s: {"mean": [1e999]},
    "a tiny std": lambda s: {"std": [1e-300]},
    "zero std": lambda s: {"std": [0.0]},
    "an inverted range": lambda s: {"low": 1.0, "high": -1.0},
    "a negative error bound": lambda s: {"error_bound": -1.0},
    "unknown post-processing": lambda s: {"post_processing": "eval"},
    "keys that are not a list": lambda s: {"keys": 7},
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_fields_are_refused(spec: ClientSpec, name: str) -> None:
    with pytest.raises(ServerUntrusted) as caught:
        parse_spec(_bytes(spec, **BAD_FIELDS[name](spec)), LIMITS)
    assert caught.value.reason is Reason.SERVER_UNTRUSTED
    assert len(caught.value.message) < 1000
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"null", b"[]", b"{}", b"[" * 100_000, b'{"keys":' * 50_000, b"9" * 10_000, b'{"format":1}'],
    ids=["empty", "not text", "null", "list", "object", "deep", "deep objects", "long number", "short"],
)
def test_bytes_that_are_no_spec_are_refused(data: bytes) -> None:
    with pytest.raises(ServerUntrusted, match="malformed"):
        parse_spec(data, LIMITS)


def test_a_json_bomb_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("json.loads", lambda *a, **k: pytest.fail("parsed"))
    with pytest.raises(ServerUntrusted, match="bytes"):
        parse_spec(b" " * (LIMITS.max_spec_bytes + 1), LIMITS)


def test_a_newer_spec_version_says_so(spec: ClientSpec) -> None:
    with pytest.raises(PlanError) as caught:
        parse_spec(_bytes(spec, spec_version=2), LIMITS)
    assert caught.value.reason is Reason.VERSION_UNKNOWN


def test_key_bytes_are_limited(spec: ClientSpec) -> None:
    with pytest.raises(ServerUntrusted, match="bytes"):
        check_spec(spec, Limits(max_key_bytes=100_000))
    check_spec(spec, Limits(max_key_bytes=1_000_000))


def test_key_count_is_limited_also_without_the_parser(spec: ClientSpec) -> None:
    keys = KeySetSpec(tuple(KeyRequest(2 * i + 1, 0) for i in range(1, 5)))
    with pytest.raises(ServerUntrusted, match="asks for 4"):
        check_spec(replace(spec, keys=keys), Limits(max_keys=3))


def test_nothing_is_made_for_a_hostile_server(client: Client, server: Any, spec: ClientSpec, tmp_path: Path) -> None:
    server.bend_spec(params=_params(spec, primes=find_primes(4096, [38.0, 36.0])))
    with pytest.raises(ParameterError):
        client.prepare("echo")
    assert not (tmp_path / "home").exists()
    assert "CreateUpload" not in server.calls


def test_a_spec_of_another_model_or_digest_is_refused(client: Client, server: Any, spec: ClientSpec) -> None:
    server.bend_spec(model="other")
    with pytest.raises(ServerUntrusted, match="of model 'other'"):
        client.spec("echo")
    server.bend_spec(version="7")
    with pytest.raises(ServerUntrusted, match="version '7'"):
        client.spec("echo", "1")


def test_a_spec_that_is_not_the_stated_digest_is_refused(
    client: Client, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from protos import convert

    original = convert.served_model_to_proto

    def swap(served: Any) -> Any:
        return original(replace(served, client_spec_digest="0" * 64))

    monkeypatch.setattr(convert, "served_model_to_proto", swap)
    with pytest.raises(ServerUntrusted, match="digest"):
        client.spec("echo")


def test_names_of_the_listing_and_the_estimate_are_printable(client: Client, server: Any, spec: ClientSpec) -> None:
    server.specs["bad\x1b[2J"] = spec
    with pytest.raises(ServerUntrusted, match="printable"):
        client.models()
    with pytest.raises(ServerUntrusted, match="printable"):
        client.estimate("bad\x1b[2J")


@pytest.mark.parametrize(
    "name", ["thousands of keys", "thousands of ciphertexts", "a hundred dimensions", "label bomb"]
)
def test_counts_are_bounded_before_the_parser_allocates(
    spec: ClientSpec, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"labels": ["x"] * 200_000} if name == "label bomb" else BAD_FIELDS[name](spec)
    monkeypatch.setattr(ClientSpec, "parse", lambda data: pytest.fail("parsed"))
    with pytest.raises(ServerUntrusted, match="need at most"):
        parse_spec(_bytes(spec, **fields), LIMITS)
