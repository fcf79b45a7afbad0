"""The whole stack for real: two small random networks, a server process with TLS on loopback, clients and raw stubs."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
import numpy as np

import server
from client import Client, Limits
from he_runtime import Plan, compile, run_clear
from he_runtime.backends import default_backend
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.client_spec import ClientSpec
from he_runtime.plan.counts import leaf_totals
from he_runtime.ring import CiphertextData, KeySetSpec
from he_runtime.wire import KeySetWriter, decode_ciphertexts, encode_ciphertexts
from protos.native import KeySetInfo
from server.running import RunningServer
from tests.he_runtime.networks import NETWORKS
from tests.server.harness import Caller

__all__ = ["MODELS", "RawClient", "Stack", "make_root", "pack_keys", "sample", "serving"]

MODELS = ("pooled", "mlp")  # the first is the quick one; they have different parameters
_SAMPLES = {name: NETWORKS[name]().inputs(8) for name in MODELS}  # within [-1, 1], like those of the calibration

_CONFIG = """
address = "127.0.0.1:0"
models = "models"
state = "state"
drain_seconds = 20.0
log_level = "error"
[tls]
enabled = true
certificate = "tls/certificate.pem"
private_key = "tls/private_key.pem"
"""


def sample(model: str, index: int = 0) -> Any:
    return _SAMPLES[model][index]


def make_root(root: Path) -> dict[str, Plan]:
    """Write the models, a certificate and the configuration under `root`; returns the plans by model name.

    `pooled` also has a version 9 whose plan is of a format that this build does not know.
    """
    plans = {}
    for name in MODELS:
        model = NETWORKS[name]().calibrated(name)
        model = model.with_(input=replace(model.input, low=-1.0, high=1.0))
        budget = 0.05 * max(map(abs, model.ranges[model.output.node]))
        # One ciphertext on one ring, whatever the shipped table says of gathers: tests cut, patch and count it.
        plans[name] = compile(
            model, max_error=budget, degrees=(8192,), input_packings=("plain", "windows", "staggered")
        )
        plans[name].save(model.save(root / "models" / name / "1") / "plan")
    future = root / "models" / MODELS[0] / "9"
    shutil.copytree(root / "models" / MODELS[0] / "1", future)
    _make_format_unknown(future / "plan")
    _configure(root)
    return plans


def _configure(root: Path) -> None:
    server.make_self_signed(root / "tls")
    (root / "server.toml").write_text(_CONFIG)


@contextmanager
def serving(root: Path, plans: dict[str, Plan]) -> Iterator[Stack]:
    """A server of the models that lie under `root`."""
    _configure(root)
    served = Stack(root, plans)
    served.start()
    try:
        yield served
    finally:
        served.stop()


def _make_format_unknown(plan: Path) -> None:
    """Version 99, under a digest that is right."""
    structure = json.dumps({**json.loads((plan / "plan.json").read_bytes()), "version": 99}).encode()
    (plan / "plan.json").write_bytes(structure)
    hasher = hashlib.sha256()
    for part in (structure, (plan / "vectors.safetensors").read_bytes()):
        hasher.update(len(part).to_bytes(8, "little") + part)
    (plan / "DIGEST").write_text(hasher.hexdigest())


def pack_keys(secret: SecretKey, keys: KeySetSpec) -> bytes:
    """The file that a client uploads."""
    file = io.BytesIO()
    with KeySetWriter(file, secret.params, keys) as writer:
        for record in secret.make_keys(keys):
            writer.write(record)
    return file.getvalue()


@dataclass
class Stack:
    """A served directory. `settings` are environment overrides of the server, such as {"ENGINE_BACKEND": "pyfhel"}."""

    root: Path
    plans: dict[str, Plan]
    settings: Mapping[str, str] = field(default_factory=dict)
    running: RunningServer | None = None

    def start(self) -> None:
        environment = {f"SECATEUR_SERVER_{name}": value for name, value in self.settings.items()}
        self.running = server.start_subprocess(self.root / "server.toml", environment)

    def stop(self) -> None:
        if self.running is not None:
            self.running.stop()
            self.running = None

    def restart(self, **settings: str) -> None:
        """The same state at the same address, so that clients know the server again."""
        self.settings = {**self.settings, **settings, "ADDRESS": self.address}
        self.stop()
        self.start()

    @property
    def address(self) -> str:
        assert self.running is not None
        return self.running.address

    @property
    def certificate(self) -> Path:
        return self.root / "tls" / "certificate.pem"

    def connect(self, home: Path, limits: Limits | None = None) -> Client:
        return Client.connect(self.address, certificate=self.certificate, home=home, limits=limits, timeout=60.0)

    def stored(self) -> dict[str, list[str]]:
        """Names of what lies in the key store: whole key sets, and parts of uploads."""
        store = self.root / "state" / "keys"
        return {kind: sorted(path.name for path in (store / kind).iterdir()) for kind in ("blobs", "parts")}

    def workers(self) -> list[int]:
        """Process ids of the workers: the children of the server."""
        assert self.running is not None and self.running.process is not None
        pid = self.running.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def channel(self) -> grpc.Channel:
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(self.certificate.read_bytes()))

    def counts(self, model: str, backend: str | None = None) -> dict[str, int]:
        return leaf_totals(self.plans[model].counts_on(backend or default_backend()))

    def expected(self, model: str, x: Any) -> Any:
        """What the polynomials give on plain numbers: (*output shape)."""
        return run_clear(self.plans[model], x[None])[0]

    def check(self, client: Client, model: str = MODELS[0], samples: Sequence[int] = (0,)) -> None:
        """A good request gets a good answer."""
        for index in samples:
            x = sample(model, index)
            answer = client.predict(model, x)
            error = np.abs(answer.logits - self.expected(model, x)).max()
            assert 0 < error <= self.plans[model].error_bound == answer.error_bound


@dataclass
class RawClient:
    """A client that may do anything wrong: raw stubs, a secret, and keys that it uploaded for one model."""

    caller: Caller
    model: str
    spec: ClientSpec
    secret: SecretKey
    key_set_id: str = ""

    @classmethod
    def make(cls, channel: grpc.Channel, model: str) -> RawClient:
        caller = Caller(channel, timeout=60.0)
        spec = ClientSpec.parse(caller.get_model(model).client_spec)
        raw = cls(caller, model, spec, SecretKey.generate(spec.params))
        raw.key_set_id = raw.upload(raw.key_file).key_set_id
        return raw

    @cached_property
    def key_file(self) -> bytes:
        return pack_keys(self.secret, self.spec.keys)

    @property
    def digests(self) -> dict[str, str]:
        return {"params_digest": self.spec.params.digest, "client_spec_digest": self.spec.digest}

    def upload(self, data: bytes, **changes: Any) -> KeySetInfo:
        return self.caller.upload(data, **{**self.digests, **changes})

    def encrypted(self, level: int | None = None, factor: float = 1.0) -> list[CiphertextData]:
        """The first sample, at another level or scale than the spec says where asked."""
        border = self.spec.input
        at = border.level if level is None else level
        slots = border.pack(sample(self.model)[None])
        return [self.secret.encrypt(row, at, border.scale * factor) for row in slots]

    @cached_property
    def request_bytes(self) -> bytes:
        return encode_ciphertexts(self.encrypted(), self.spec.params)

    def infer(self, data: bytes | None = None, **changes: Any) -> Any:
        payload = self.request_bytes if data is None else data
        fields = {"model": self.model, "client_spec_digest": self.spec.digest, **changes}
        return self.caller.infer(fields.pop("key_set_id", self.key_set_id), payload, **fields)

    def decrypt(self, reply: bytes) -> Any:
        found = decode_ciphertexts(reply, self.spec.params, max_count=self.spec.output.ciphertexts)
        return self.spec.output.unpack(np.stack([self.secret.decrypt(c) for c in found]))[0]


@contextmanager
def own_stack(shared: Stack, root: Path, **settings: str) -> Iterator[Stack]:
    """A server of a test's own on copies of the shared models."""
    for part in ("models", "tls"):
        shutil.copytree(shared.root / part, root / part)
    shutil.copy(shared.root / "server.toml", root)
    stack = Stack(root, shared.plans, settings)
    stack.start()
    try:
        yield stack
    finally:
        stack.stop()
