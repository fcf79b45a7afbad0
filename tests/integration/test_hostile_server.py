"""A server that lies: the real one, behind a middleman that bends what it says. The client refuses before it matters."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import Client, Limits, ServerError, ServerUntrusted
from he_runtime.client_spec import ClientSpec
from he_runtime.errors import CiphertextMismatch, ParameterError, PlanError, SecateurError, WireError
from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import CiphertextData
from he_runtime.wire import decode_ciphertexts, encode_ciphertexts
from tests.integration.middleman import Middleman
from tests.integration.refusals import raised
from tests.integration.stack import MODELS, Stack, sample
from tests.wire.arrays import resealed

pytestmark = pytest.mark.usefixtures("still_serving")

QUICK = MODELS[0]
X = sample(QUICK)


@pytest.fixture(scope="module")
def between(stack: Stack) -> Iterator[Middleman]:
    with Middleman(stack) as middleman:
        yield middleman


@pytest.fixture(autouse=True)
def honest_again(between: Middleman) -> Iterator[None]:
    between.bend.clear()
    between.calls.clear()
    yield
    between.bend.clear()


# Specs


def _bent_spec(edit: Callable[[dict[str, Any]], object]) -> Callable[[Any], None]:
    """Edit the spec's JSON, under a digest that is right."""

    def bend(reply: Any) -> None:
        record = json.loads(reply.client_spec)
        edit(record)
        reply.client_spec = json.dumps(record).encode()
        reply.client_spec_digest = hashlib.sha256(reply.client_spec).hexdigest()

    return bend


def _params(**changes: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], object]:
    return lambda record: record["params"].update({name: make(record["params"]) for name, make in changes.items()})


def _tensor(side: str, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda record: record[side].update(changes)


def _first(value: int) -> Callable[[dict[str, Any]], object]:
    return _params(primes=lambda p: [value, *p["primes"][1:]])


UNTRUSTED, INSECURE = "SERVER_UNTRUSTED", "PARAMETERS_INSECURE"
COMPOSITE = 16385 * 16417  # neither factor is 1, and the product is not prime
SPECS: dict[str, tuple[Callable[[dict[str, Any]], object], type[SecateurError], str]] = {
    "log2(QP) above the table": (
        _params(primes=lambda p: find_primes(p["degree"], [59.0, 58.0, 57.0])),
        ParameterError,
        INSECURE,
    ),
    "SEAL's limit, but not ours": (
        _params(primes=lambda p: find_primes(p["degree"], [54.4] * 3), special=lambda p: find_primes(8192, [54.6])),
        ParameterError,
        INSECURE,
    ),
    "parameters that say INSECURE": (_params(insecure=lambda p: True), ParameterError, INSECURE),
    "a composite": (_first(COMPOSITE), ServerUntrusted, UNTRUSTED),
    "a composite that is 1 mod 2N": (_first(16385 * 32769), ServerUntrusted, UNTRUSTED),
    "a Carmichael number": (_first(825265), ServerUntrusted, UNTRUSTED),
    "a prime twice": (_params(primes=lambda p: [p["primes"][0]] * 2), ServerUntrusted, UNTRUSTED),
    "a special prime that is live": (_params(special=lambda p: [p["primes"][0]]), ServerUntrusted, UNTRUSTED),
    "a prime that is not 1 mod 2N": (_first((1 << 31) - 1), ServerUntrusted, UNTRUSTED),
    "a prime of 61 bits": (_first((1 << 61) - 1), ServerUntrusted, UNTRUSTED),
    "a prime of a thousand digits": (_first(10**1000 + 453), ServerUntrusted, UNTRUSTED),
    "one": (_first(1), ServerUntrusted, UNTRUSTED),
    "no special prime": (_params(special=lambda p: []), ServerUntrusted, UNTRUSTED),
    "a ring that there is no row for": (_params(degree=lambda p: 2048), ServerUntrusted, UNTRUSTED),
    "thousands of keys": (
        lambda r: r.update(keys=[[2 * i + 1, 0] for i in range(1, 5000)]),
        ServerUntrusted,
        UNTRUSTED,
    ),
    "an element twice": (lambda r: r.update(keys=[[3, 1], [3, 1]]), ServerUntrusted, UNTRUSTED),
    "an even element": (lambda r: r.update(keys=[[2, 1]]), ServerUntrusted, UNTRUSTED),
    "a level that there is not": (lambda r: r.update(keys=[[3, 40]]), ServerUntrusted, UNTRUSTED),
    "another gadget": (lambda r: r.update(gadget="hybrid"), PlanError, "VERSION_UNKNOWN"),
    "a spec of another version": (lambda r: r.update(spec_version=2), PlanError, "VERSION_UNKNOWN"),
    "4096 ciphertexts": (_tensor("input", ciphertexts=4096), ServerUntrusted, UNTRUSTED),
    "a scale of NaN": (_tensor("input", scale="nan"), ServerUntrusted, UNTRUSTED),
    "a scale that hides nothing": (_tensor("input", scale=(2.0).hex()), ServerUntrusted, UNTRUSTED),
    "a shape that does not fit": (_tensor("output", shape=[1 << 20, 1 << 20]), ServerUntrusted, UNTRUSTED),
    "a slot map bomb": (
        _tensor("input", slot_map=base64.b64encode(zlib.compress(bytes(64 << 20))).decode()),
        ServerUntrusted,
        UNTRUSTED,
    ),
    "an escape sequence": (lambda r: r.update(labels=["\x1b[2J", *"abcd"]), ServerUntrusted, UNTRUSTED),
    "normalization to infinity": (lambda r: r.update(std=[1e-320]), ServerUntrusted, UNTRUSTED),
    "another model": (lambda r: r.update(model="mlp"), ServerUntrusted, UNTRUSTED),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_hostile_spec_costs_no_key(between: Middleman, tmp_path: Path, name: str) -> None:
    edit, kind, reason = SPECS[name]
    between.bend["GetModel"] = _bent_spec(edit)
    with between.connect(tmp_path) as client:
        raised(lambda: client.predict(QUICK, X), kind, reason)
    assert "CreateUpload" not in between.calls and not list(tmp_path.rglob("secret.key"))


def test_limits_of_the_clients_own(between: Middleman, tmp_path: Path) -> None:
    with between.connect(tmp_path, Limits(max_keys=3)) as client:
        raised(lambda: client.predict(QUICK, X), ServerUntrusted, UNTRUSTED)
    with between.connect(tmp_path, Limits(max_key_bytes=1 << 20)) as client:
        raised(lambda: client.predict(QUICK, X), ServerUntrusted, UNTRUSTED)
    assert "CreateUpload" not in between.calls and not list(tmp_path.rglob("secret.key"))


def test_a_spec_without_its_digest(between: Middleman, tmp_path: Path) -> None:
    between.bend["GetModel"] = lambda reply: setattr(reply, "client_spec_digest", "00" * 32)
    with between.connect(tmp_path) as client:
        raised(lambda: client.predict(QUICK, X), ServerUntrusted, UNTRUSTED)


def test_another_wire_version(between: Middleman, tmp_path: Path) -> None:
    between.bend["ListModels"] = lambda reply: setattr(reply.server, "wire_version", 2)
    raised(lambda: between.connect(tmp_path), ServerError, "VERSION_UNKNOWN")


def test_a_key_set_that_was_not_sent(between: Middleman, tmp_path: Path) -> None:
    between.bend["CommitUpload"] = lambda reply: setattr(reply.key_set, "sha256", "00" * 32)
    with between.connect(tmp_path) as client:
        raised(lambda: client.predict(QUICK, X), ServerUntrusted, UNTRUSTED)
    assert not list(tmp_path.rglob("key_sets.json"))


# Replies

Edit = Callable[[ClientSpec, CiphertextData, bytes], bytes]


def _again(change: Callable[[ClientSpec, CiphertextData], list[CiphertextData]]) -> Edit:
    return lambda spec, ct, data: encode_ciphertexts(change(spec, ct), spec.params)


def _raised_level(spec: ClientSpec, ct: CiphertextData) -> CiphertextData:
    rows = np.ones((ct.level + 2, spec.params.degree), dtype=np.uint64)
    return CiphertextData(ct.level + 1, ct.scale, (rows, rows))


def _of_other_parameters(spec: ClientSpec, ct: CiphertextData, data: bytes) -> bytes:
    primes = find_primes(spec.params.degree, [40.0, 40.0, 41.0])
    params = CkksParams(spec.params.degree, tuple(primes[:2]), tuple(primes[2:]))
    rows = np.ones((1, params.degree), dtype=np.uint64)
    return encode_ciphertexts([CiphertextData(0, 2.0**30, (rows, rows))], params)


REPLIES: dict[str, tuple[Edit, type[SecateurError], str]] = {
    "another level": (_again(lambda s, c: [_raised_level(s, c)]), CiphertextMismatch, "LEVEL_MISMATCH"),
    "twice the scale": (_again(lambda s, c: [replace(c, scale=c.scale * 2)]), CiphertextMismatch, "SCALE_MISMATCH"),
    "a scale off by 2^-30": (
        _again(lambda s, c: [replace(c, scale=c.scale * (1 + 2.0**-30))]),
        CiphertextMismatch,
        "SCALE_MISMATCH",
    ),
    "three polynomials": (
        _again(lambda s, c: [replace(c, polys=(*c.polys, c.polys[1]))]),
        CiphertextMismatch,
        "SIZE_MISMATCH",
    ),
    "two ciphertexts": (_again(lambda s, c: [c, c]), WireError, "LIMIT_EXCEEDED"),
    "no ciphertext": (_again(lambda s, c: []), ServerUntrusted, UNTRUSTED),
    "other parameters": (_of_other_parameters, ServerUntrusted, UNTRUSTED),
    "nothing": (lambda s, c, d: b"", WireError, "BYTES_TRUNCATED"),
    "half": (lambda s, c, d: d[: len(d) // 2], WireError, "BYTES_TRUNCATED"),
    "a flipped bit": (lambda s, c, d: d[:-1] + bytes([d[-1] ^ 1]), WireError, "DIGEST_MISMATCH"),
    "a residue of 64 bits": (
        lambda s, c, d: resealed(d, lambda b: b.__setitem__(slice(-8, None), b"\xff" * 8)),
        WireError,
        "RESIDUE_OUT_OF_RANGE",
    ),
    "a megabyte more": (lambda s, c, d: d + bytes(1 << 20), ServerUntrusted, UNTRUSTED),
}


@pytest.fixture(scope="module")
def trusting(between: Middleman, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client that has prepared the model while the server was honest."""
    with between.connect(tmp_path_factory.mktemp("trusting"), Limits(max_message_bytes=4 << 20)) as client:
        client.predict(QUICK, X)
        yield client


def _bend_reply(between: Middleman, client: Client, edit: Edit) -> None:
    spec = client.spec(QUICK)

    def bend(reply: Any) -> None:
        (ciphertext,) = decode_ciphertexts(reply.ciphertexts, spec.params, max_count=1)
        reply.ciphertexts = edit(spec, ciphertext, reply.ciphertexts)

    between.bend["Infer"] = bend


@pytest.mark.parametrize("name", REPLIES)
def test_a_bad_reply_is_not_decrypted(
    stack: Stack, between: Middleman, trusting: Client, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    edit, kind, reason = REPLIES[name]
    _bend_reply(between, trusting, edit)
    with monkeypatch.context() as patch:
        patch.setattr("client.run.decrypt", lambda *a: pytest.fail("decrypted"))
        raised(lambda: trusting.predict(QUICK, X), kind, reason)
    between.bend.clear()
    stack.check(trusting)


def test_a_reply_above_the_clients_limit(stack: Stack, between: Middleman, trusting: Client) -> None:
    _bend_reply(between, trusting, lambda s, c, d: bytes(5 << 20))
    with pytest.raises(ServerError) as caught:
        trusting.predict(QUICK, X)
    assert caught.value.reason == "LIMIT_EXCEEDED"
    between.bend.clear()
    stack.check(trusting)


@pytest.mark.parametrize("field", ["model", "version", "plan_digest"])
def test_a_reply_about_something_else(stack: Stack, between: Middleman, trusting: Client, field: str) -> None:
    between.bend["Infer"] = lambda reply: setattr(reply, field, "other")
    raised(lambda: trusting.predict(QUICK, X), ServerUntrusted, UNTRUSTED)
    between.bend.clear()
    stack.check(trusting)


def test_counts_and_times_of_a_liar_do_not_break_the_client(between: Middleman, trusting: Client) -> None:
    def lie(reply: Any) -> None:
        reply.counts["\x1b[2J" * 100] = 2**64 - 1
        reply.timings.evaluate_ms = float("nan")

    between.bend["Infer"] = lie
    raised(lambda: trusting.predict(QUICK, X), ServerUntrusted, UNTRUSTED)
