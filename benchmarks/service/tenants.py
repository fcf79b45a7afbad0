"""Many tenants and a key cache ten times too small: nobody ever gets a result of another's keys.

    python -m benchmarks.service.tenants [--tenants 100] [--count 5000]

Tenants are told apart by bearer tokens. Each uploads keys of its own; requests then come from tenants at random over several
connections at once, and each reply names the digest of the keys that it was made with. One request in twenty tries
another tenant's id, which must be unknown. Prints one JSON object and exits with 1 where a result was wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from protos import convert
from protos.gen.secateur.v1 import inference_pb2, inference_pb2_grpc, keys_pb2, keys_pb2_grpc
from protos.native import UploadOffer
from protos.status import from_rpc_error

from .fakes import PARAMS, fake_server, spec_digest

__all__ = ["main", "many_tenants"]

_KEY_BYTES = 100_000
_STRANGE = 20  # one request in so many names another tenant's keys
_ISSUER, _AUDIENCE = "https://issuer.example", "secateur"


@dataclass(frozen=True)
class _Tenant:
    metadata: tuple[tuple[str, str], ...]
    sha256: bytes
    key_set_id: str


def many_tenants(directory: Path, tenants: int, count: int, threads: int = 8, seed: int = 0) -> dict[str, Any]:
    """`count` requests of `tenants` tenants to two workers whose caches hold a tenth of the keys."""
    key = ed25519.Ed25519PrivateKey.generate()
    sections = _sections(directory, key, tenants)
    with fake_server(directory, sections) as server, grpc.insecure_channel(server.address) as channel:
        known = [_upload(channel, key, number) for number in range(tenants)]
        inference = inference_pb2_grpc.InferenceServiceStub(channel)
        chooser = random.Random(seed)
        asked = [(chooser.randrange(tenants), chooser.randrange(tenants), n) for n in range(count)]
        started = time.monotonic()
        with ThreadPoolExecutor(threads) as pool:
            answers = list(pool.map(lambda one: _ask(inference, known, *one), asked))
        seconds = time.monotonic() - started
    outcomes = Counter(outcome for outcome, _, _ in answers)
    loads: dict[int, int] = {}
    for _, worker, number in answers:
        loads[worker] = max(loads.get(worker, 0), number)
    return {
        "tenants": tenants,
        "requests": count,
        "outcomes": dict(outcomes),
        "key_loads": sum(loads.values()),
        "requests_per_second": round(count / seconds),
        "ok": set(outcomes) <= {"right", "refused"} and outcomes["right"] > 0 and outcomes["refused"] > 0,
    }


def _sections(directory: Path, key: ed25519.Ed25519PrivateKey, tenants: int) -> dict[str, dict[str, Any]]:
    directory.mkdir(parents=True, exist_ok=True)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (directory / "issuer.pem").write_bytes(public)
    return {
        "identity": {"mode": "jwt"},
        "jwt": {"keys": "issuer.pem", "issuer": _ISSUER, "audience": _AUDIENCE, "algorithms": ["EdDSA"]},
        "engine": {"workers": 2, "key_cache_bytes": max(1, tenants // 10) * _KEY_BYTES},
    }


def _upload(channel: grpc.Channel, key: ed25519.Ed25519PrivateKey, number: int) -> _Tenant:
    claims = {
        "iss": _ISSUER,
        "aud": _AUDIENCE,
        "sub": "client",
        "tenant": f"tenant-{number}",
        "exp": time.time() + 3600,
    }
    metadata = (("authorization", f"Bearer {jwt.encode(claims, key, 'EdDSA')}"),)
    stub = keys_pb2_grpc.KeyServiceStub(channel)
    data = (b"KEYS%06d" % number) * (_KEY_BYTES // 10)
    offer = UploadOffer(PARAMS, spec_digest(), len(data), hashlib.sha256(data).hexdigest())
    upload_id = stub.CreateUpload(convert.upload_offer_to_proto(offer), metadata=metadata).upload.upload_id
    stub.UploadChunk(keys_pb2.UploadChunkRequest(upload_id=upload_id, data=data), metadata=metadata)
    done = stub.CommitUpload(keys_pb2.CommitUploadRequest(upload_id=upload_id), metadata=metadata).key_set
    return _Tenant(metadata, offer.sha256.encode(), done.key_set_id)


def _ask(inference: Any, known: list[_Tenant], who: int, other: int, number: int) -> tuple[str, int, int]:
    """(what came of it, worker, keys that it had loaded until then)."""
    tenant, payload = known[who], b"%d" % number
    strange = number % _STRANGE == 0 and other != who
    key_set_id = (known[other] if strange else tenant).key_set_id
    request = inference_pb2.InferRequest(model="digits", key_set_id=key_set_id, ciphertexts=b"echo:" + payload)
    for _ in range(100):
        try:
            reply = inference.Infer(request, timeout=60, metadata=tenant.metadata)
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
            if failure.reason == "SERVER_BUSY":
                time.sleep(failure.retry_after_seconds or 0.1)
                continue
            if strange and failure.reason == "KEY_SET_UNKNOWN":
                return "refused", 0, 0
            return failure.reason, 0, 0
        right = reply.ciphertexts == tenant.sha256 + b"|" + payload and not strange
        return "right" if right else "wrong", reply.counts["pid"], reply.counts["key_loads"]
    return "SERVER_BUSY", 0, 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--tenants", type=int, default=100)
    parser.add_argument("--count", type=int, default=5000, help="requests")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="secateur-tenants-") as place:
        report = many_tenants(Path(place), options.tenants, options.count)
    print(json.dumps(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
