"""A runtime without an HE library: what the server's tests name as `engine.runtime`.

A model directory holds model.json. A key file is good when it begins with b"KEYS". The payload of an inference is a
command, so that a test can make a worker sleep, die, hang or fail.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from he_runtime.errors import BackendUnavailable, CiphertextMismatch, KeyMismatch, PlanError, Reason, WireError
from protos.native import LayerEstimate
from server.engine.runtime import Cost, ModelDescription

LAYERS = ("dense1", "square1", "dense1", "unheard-of")  # as run names them: one twice, one of no family
FAMILIES = {"dense1": "linear", "square1": "activation"}
LIBRARY_TEXT = "std::logic_error: ciphertext pool 0xdeadbeef"


def wire_version() -> int:
    return 1


def describe(directory: Path, name: str, version: str) -> ModelDescription:
    record = json.loads((directory / "model.json").read_text())
    if record.get("explodes"):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    if record.get("broken"):
        raise PlanError(
            "cannot read plan format 99: this build reads 1; try planning again", Reason.PLAN_VERSION_UNKNOWN
        )
    spec = f"spec of {name} {version}".encode()
    return ModelDescription(
        name=name,
        version=version,
        directory=directory,
        client_spec=spec,
        client_spec_digest=hashlib.sha256(spec).hexdigest(),
        params_digest=record["params"],
        model_digest="aa" * 32,
        plan_digest=hashlib.sha256(version.encode()).hexdigest(),
        max_key_bytes=record.get("max_key_bytes", 1 << 24),
        max_request_bytes=record.get("max_request_bytes", 1 << 24),
        families=FAMILIES,
    )


def problems(backend: str) -> list[str]:
    return []


def estimate(model: ModelDescription, backend: str, cost_table: Path | None) -> Cost:
    layers = (LayerEstimate("dense1", 10.0, 8.0, 12.0), LayerEstimate("square1", 2.5, 2.0, 3.0))
    counts = {"rotate": 4}, {"rotate": 9}
    return Cost(12.5, 10.0, 15.0, "calibrated", 100, 200, 300, *counts, f"{backend} table", layers)


@dataclass(frozen=True)
class FakeKeys:
    content: bytes
    byte_size: int


class FakeModel:
    def __init__(self) -> None:
        self.loads = 0
        self.layers = {"dense1": 2, "square1": 1}  # as estimated, with their operations

    def load_keys(self, path: Path, check: Callable[[], None]) -> FakeKeys:
        content = path.read_bytes()
        if not content.startswith(b"KEYS"):
            raise WireError("cannot read a key set: got other magic bytes", Reason.BYTES_MALFORMED)
        if b"FEW" in content[:16]:
            raise KeyMismatch("cannot evaluate: got no such key for Galois element 3, need one for level 2")
        self.loads += 1
        return FakeKeys(content, len(content))

    def run(
        self, ciphertexts: bytes, keys: FakeKeys, check: Callable[[], None], on_layer: Callable[[str], None]
    ) -> tuple[bytes, Mapping[str, int]]:
        command, _, rest = ciphertexts.partition(b":")
        for layer in LAYERS:
            on_layer(layer)
        if command == b"echo":
            digest = hashlib.sha256(keys.content).hexdigest().encode()
            return digest + b"|" + rest, {"rotate": 3, "pid": os.getpid(), "key_loads": self.loads}
        if command == b"sleep":
            _sleep(float(rest), check)
            return b"slept", {}
        if command == b"work":
            seconds, log, tag, _ = rest.split(b":", 3)
            _sleep(float(seconds), check)
            with open(log, "ab", buffering=0) as file:  # who evaluates twice is seen
                file.write(b"%s %d\n" % (tag, os.getpid()))
            return tag, {"pid": os.getpid()}
        if command == b"steps":
            self._steps(Path(rest.decode()), check, on_layer)
            return b"stepped", {}
        if command == b"hang":
            time.sleep(600)
        if command == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        if command == b"library":
            raise RuntimeError(LIBRARY_TEXT)
        if command == b"leak":
            raise RuntimeError(f"no such thing: {rest.decode()}")  # a library that names what it was given
        if command == b"grpc":
            return str(sorted({m.partition(".")[0] for m in sys.modules} & {"grpc", "torch", "client"})).encode(), {}
        if command == b"big":
            return bytes(int(rest)), {}
        if command == b"level":
            raise CiphertextMismatch("cannot evaluate: got a ciphertext at level 1, need level 2; try the client spec")
        raise WireError("cannot read ciphertexts: got other magic bytes", Reason.BYTES_MALFORMED)

    def _steps(self, gates: Path, check: Callable[[], None], on_layer: Any) -> None:
        """All operations, each one when its gate is there: a file named by the operation's number."""
        done = 0
        for layer, count in self.layers.items():
            on_layer(layer)
            for _ in range(count):
                on_layer.operation(done, sum(self.layers.values()))
                while not (gates / str(done)).exists():
                    _sleep(0.002, check)
                done += 1


def _sleep(seconds: float, check: Callable[[], None]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        check()
        time.sleep(0.005)


def build(directory: Path, backend: str) -> FakeModel:
    if backend == "absent":
        raise BackendUnavailable("cannot use backend 'absent': try pip install absent")
    time.sleep(json.loads((directory / "model.json").read_text()).get("build_seconds", 0.0))
    return FakeModel()
