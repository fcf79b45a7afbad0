"""What hostile requests are sent to: a server process with real models, real keys, real workers, and two tenants.

Everything that a case needs to be made of good parts is here; the bad parts are in the modules beside this one.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from he_runtime import Plan, compile, run_clear
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.client_spec import ClientSpec
from he_runtime.wire import decode_ciphertexts
from protos.gen.secateur.v1 import inference_pb2, keys_pb2, model_pb2
from protos.status import DETAILS_KEY, from_rpc_error
from tests.hostile.processes import Sizes, children
from tests.hostile.sides import INPUTS, Side, key_set, models
from tests.server.authority import Issuer, bearer, write_jwks
from tests.server.harness import sha256

__all__ = ["ACME", "RIVAL", "SERVICE", "Outcome", "World", "serving"]

ACME, RIVAL = "acme", "rival"
SERVICE = "/secateur.v1."
_RUN_SECONDS = 12 * 3600

_CONFIG = """
address = "127.0.0.1:0"
models = "models"
state = "state"
log_level = "info"
[engine]
workers = {workers}
[identity]
mode = "jwt"
[jwt]
keys = "jwks.json"
issuer = "{issuer}"
audience = "{audience}"
[limits]
receive_seconds = 1.0
[keys]
upload_idle_seconds = 0.001
"""


@dataclass(frozen=True)
class Outcome:
    """What a call came to. `reason` is the ErrorInfo's, or empty where the status had none."""

    code: str
    reason: str = ""
    message: str = ""
    reply: bytes = field(default=b"", repr=False)

    @property
    def answer(self) -> tuple[str, str]:
        return self.code, self.reason


def _write(root: Path, issuer: Issuer, workers: int) -> dict[str, Plan]:
    plans = {}
    for name, model in models().items():
        plans[name] = compile(model, degrees=(4096, 8192), max_error=0.5)
        plans[name].save(model.save(root / "models" / name / "1") / "plan")
    write_jwks(root / "jwks.json", issuer.jwk)
    text = _CONFIG.format(workers=workers, issuer=Issuer.NAME, audience=Issuer.AUDIENCE)
    (root / "server.toml").write_text(text)
    return plans


@dataclass
class World:
    """The server, and its callers. `log` is where its standard error goes."""

    root: Path
    issuer: Issuer
    plans: dict[str, Plan]
    process: subprocess.Popen[str]
    address: str
    channel: grpc.Channel
    sides: dict[str, Side] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict, repr=False)
    upload_id: str = field(default="", repr=False)

    @property
    def log(self) -> Path:
        return self.root / "server.log"

    def workers(self) -> tuple[int, ...]:
        return children(self.process.pid)

    def sizes(self) -> Sizes:
        return Sizes.of(self.process.pid, self.workers())

    # Calls

    def call(
        self,
        method: str,
        data: bytes | Iterable[bytes],
        *,
        tenant: str = ACME,
        seconds: float = 10.0,
        metadata: tuple[tuple[str, str | bytes], ...] | None = None,
        compression: grpc.Compression | None = None,
        channel: grpc.Channel | None = None,
    ) -> Outcome:
        """One call with these very bytes as its message, or messages; the last reply, where there is one."""
        path = method if method.startswith("/") else SERVICE + method
        messages = iter([data] if isinstance(data, bytes) else data)
        shown: Any = bearer(self.tokens[tenant]) if metadata is None else metadata
        reply = b""
        try:
            # To a server, a call of one message is a stream like any other.
            raw: Any = channel or self.channel  # bytes in, bytes out: neither side of the call is serialized
            line = raw.stream_stream(path)
            for message in line(messages, timeout=seconds, metadata=shown, compression=compression):
                reply = message
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
            trailing: Any = error.trailing_metadata() or ()
            reason = failure.reason if any(key == DETAILS_KEY for key, _ in trailing) else ""
            return Outcome(failure.code.name, reason, failure.message)
        return Outcome("OK", reply=reply)

    def infer_request(self, data: bytes, model: str = "tiny", **changes: Any) -> inference_pb2.InferRequest:
        fields = {"model": model, "key_set_id": self.sides[model].key_set_id, "ciphertexts": data, **changes}
        return inference_pb2.InferRequest(**fields)

    def upload(self, data: bytes, model: str, tenant: str = ACME, **changes: Any) -> Outcome:
        """Offer, send and commit `data` as a key set of `model`; the first refusal, or the reply of the commit."""
        spec = self.sides[model].spec
        fields = {"params_digest": spec.params.digest, "client_spec_digest": spec.digest, "sha256": sha256(data)}
        offer = keys_pb2.CreateUploadRequest(**{**fields, "total_bytes": len(data), **changes})
        outcome = self.call("KeyService/CreateUpload", offer.SerializeToString(), tenant=tenant)
        if outcome.code != "OK":
            return outcome
        offered = keys_pb2.CreateUploadResponse.FromString(outcome.reply)
        if offered.WhichOneof("result") == "key_set":
            return Outcome("OK", reply=keys_pb2.CommitUploadResponse(key_set=offered.key_set).SerializeToString())
        chunk = keys_pb2.UploadChunkRequest(upload_id=offered.upload.upload_id, data=data)
        outcome = self.call("KeyService/UploadChunk", chunk.SerializeToString(), tenant=tenant)
        if outcome.code != "OK":
            return outcome
        commit = keys_pb2.CommitUploadRequest(upload_id=offered.upload.upload_id)
        return self.call("KeyService/CommitUpload", commit.SerializeToString(), tenant=tenant)

    def stored(self, data: bytes, model: str, tenant: str = ACME) -> str:
        """The id of a good key set."""
        outcome = self.upload(data, model, tenant)
        assert outcome.code == "OK", outcome
        return str(keys_pb2.CommitUploadResponse.FromString(outcome.reply).key_set.key_set_id)

    def check_good(self) -> None:
        """A good request is answered, and right."""
        side = self.sides["tiny"]
        outcome = self.call("InferenceService/Infer", self.infer_request(side.request).SerializeToString())
        assert outcome.code == "OK", outcome
        reply = inference_pb2.InferResponse.FromString(outcome.reply).ciphertexts
        (found,) = decode_ciphertexts(reply, side.spec.params, max_count=1)
        answer = side.spec.output.unpack(side.secret.decrypt(found)[None])[0]
        plan = self.plans["tiny"]
        assert np.abs(answer - run_clear(plan, INPUTS["tiny"][None])[0]).max() <= plan.error_bound

    # Setting up

    def _enrol(self) -> None:
        for tenant in (ACME, RIVAL):
            self.tokens[tenant] = self.issuer.token(tenant, exp=int(time.time()) + _RUN_SECONDS)
        for name, tenant in {
            "tiny": ACME,
            "other": ACME,
            "narrow": ACME,
            "tiny of rival": RIVAL,
            "second": ACME,
        }.items():
            model = {"tiny of rival": "tiny", "second": "tiny"}.get(name, name)
            request = model_pb2.GetModelRequest(model=model).SerializeToString()
            served = model_pb2.GetModelResponse.FromString(self.call("ModelService/GetModel", request).reply)
            spec = ClientSpec.parse(served.client_spec)
            secret = SecretKey.generate(spec.params)
            side = self.sides[name] = Side(spec, secret, key_set(secret, spec.keys))
            side.key_set_id = self.stored(side.key_file, model, tenant)
            side.smuggled, side.request, side.request_in_full  # noqa: B018 - made now, as later calls have a clock
        self.upload_id = self._open_upload()

    def _open_upload(self) -> str:
        """An upload of which half is there, for chunks and commits that do not fit."""
        side = self.sides["other"]
        fields = {"params_digest": side.spec.params.digest, "client_spec_digest": side.spec.digest}
        offer = keys_pb2.CreateUploadRequest(sha256=sha256(b"another file"), total_bytes=1000, **fields)
        reply = self.call("KeyService/CreateUpload", offer.SerializeToString()).reply
        upload_id = keys_pb2.CreateUploadResponse.FromString(reply).upload.upload_id
        chunk = keys_pb2.UploadChunkRequest(upload_id=upload_id, data=bytes(500))
        assert self.call("KeyService/UploadChunk", chunk.SerializeToString()).code == "OK"
        return str(upload_id)


@contextmanager
def serving(root: Path, workers: int = 1) -> Iterator[World]:
    """Such a server, in a process of its own, with models, state and log under `root`."""
    issuer = Issuer()
    plans = _write(root, issuer, workers)
    paths = os.pathsep.join(os.path.abspath(p) for p in sys.path)
    with open(root / "server.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "server", "--config", str(root / "server.toml")],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 120)
        line = process.stdout.readline() if ready else ""
        assert line, (root / "server.log").read_text()
        address = str(json.loads(line)["address"])
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(address, options) as channel:
            world = World(root, issuer, plans, process, address, channel)
            world._enrol()
            world.check_good()
            yield world
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
