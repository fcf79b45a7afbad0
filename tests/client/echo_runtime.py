"""A server's runtime that echoes real ciphertexts, slowly or not at all as files of a control directory say.

<control>/evaluations   a line for each evaluation that was finished
<control>/hold          while it exists, nothing is answered that has been evaluated
<control>/die           the worker that sees it removes it and dies in the middle of an evaluation
<control>/doomed        while it exists, every evaluation dies so
<control>/gates/<k>     where gates/ exists, operation k begins its end only when this is there
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from he_runtime.client_spec import ClientSpec
from he_runtime.ring import CiphertextData, SeededPoly
from he_runtime.wire import WIRE_VERSION, decode_ciphertexts, encode_ciphertexts, expand_seed
from protos.native import LayerEstimate
from server.engine.runtime import Cost, ModelDescription

LAYERS = {"dense1": 2, "square1": 1}


def wire_version() -> int:
    return WIRE_VERSION


def problems(backend: str) -> list[str]:
    return []


def describe(directory: Path, name: str, version: str) -> ModelDescription:
    data = (directory / "spec.json").read_bytes()
    spec = ClientSpec.parse(data)
    digest = hashlib.sha256(data).hexdigest()
    limits = 1 << 26, 1 << 26
    return ModelDescription(
        name, version, directory, data, digest, spec.params.digest, "aa" * 32, spec.plan_digest, *limits
    )


def estimate(model: ModelDescription, backend: str, cost_table: Path | None) -> Cost:
    layers = (LayerEstimate("dense1", 10.0, 8.0, 12.0), LayerEstimate("square1", 2.5, 2.0, 3.0))
    return Cost(12.5, 10.0, 15.0, "calibrated", 100, 200, 300, {"rotate": 3}, {"rotate": 9}, "echo table", layers)


@dataclass(frozen=True)
class Keys:
    byte_size: int


class EchoModel:
    layers = LAYERS

    def __init__(self, directory: Path) -> None:
        self.spec = ClientSpec.parse((directory / "spec.json").read_bytes())
        self.control = Path(json.loads((directory / "model.json").read_text())["control"])

    def load_keys(self, path: Path, check: Callable[[], None]) -> Keys:
        return Keys(path.stat().st_size)

    def run(
        self, ciphertexts: bytes, keys: Keys, check: Callable[[], None], on_layer: Any
    ) -> tuple[bytes, Mapping[str, int]]:
        (self.control / "under-way").touch()
        try:
            return self._run(ciphertexts, check, on_layer)
        finally:
            (self.control / "under-way").unlink(missing_ok=True)

    def _run(self, ciphertexts: bytes, check: Callable[[], None], on_layer: Any) -> tuple[bytes, Mapping[str, int]]:
        done = 0
        for layer, count in LAYERS.items():
            on_layer(layer)
            for _ in range(count):
                on_layer.operation(done, sum(LAYERS.values()))
                self._wait(lambda k=done: (self.control / "gates").exists() and not self._gate(k), check)
                done += 1
        if (self.control / "die").exists() or (self.control / "doomed").exists():
            (self.control / "die").unlink(missing_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)
        reply = encode_ciphertexts(echo(self.spec, ciphertexts), self.spec.params)
        with (self.control / "evaluations").open("a") as file:
            file.write(hashlib.sha256(ciphertexts).hexdigest() + "\n")
        self._wait((self.control / "hold").exists, check)
        return reply, {"rotate": 3}

    def _gate(self, k: int) -> bool:
        return (self.control / "gates" / str(k)).exists()

    def _wait(self, blocked: Callable[[], bool], check: Callable[[], None]) -> None:
        parent = os.getppid()
        while blocked():
            check()
            if os.getppid() != parent:  # its server was killed
                os._exit(1)
            time.sleep(0.005)


def echo(spec: ClientSpec, ciphertexts: bytes) -> list[CiphertextData]:
    """The input ciphertexts with their seeds expanded, switched down to the output level by dropping residues."""
    params, live = spec.params, spec.output.level + 1
    answers = []
    for ciphertext in decode_ciphertexts(ciphertexts, params, max_count=64):
        primes = params.primes[: ciphertext.level + 1]
        full = [expand_seed(p, primes, params.degree) if isinstance(p, SeededPoly) else p for p in ciphertext.polys]
        answers.append(CiphertextData(live - 1, ciphertext.scale, tuple(np.ascontiguousarray(p[:live]) for p in full)))
    return answers


def build(directory: Path, backend: str) -> EchoModel:
    return EchoModel(directory)
