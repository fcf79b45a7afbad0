"""What reads bytes from outside, each with good objects to begin from: for atheris, and for a test without it."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from he_runtime import CompressedModel, Plan, compile
from he_runtime.client_spec import ClientSpec
from he_runtime.errors import Reason, SecateurError
from he_runtime.model import InputSpec, Node, OutputSpec
from he_runtime.ring import KeyRecord, KeyRequest, KeySetSpec
from he_runtime.wire import (
    KeySetWriter,
    decode_ciphertexts,
    decode_key,
    decode_public_key,
    encode_ciphertexts,
    encode_key,
    encode_public_key,
    read_key_set,
)
from server.config import load_config
from tests.wire.arrays import PARAMS, ciphertext, key, public_key

__all__ = ["PARSERS", "Parser", "reseal"]

_HEADER = 80


@dataclass(frozen=True)
class Parser:
    """`parse` raises errors of he_runtime.errors only. `sealed` objects have the codec's digest; `table`: over a table only."""

    parse: Callable[[bytes], object]
    good: Callable[[], list[bytes]]
    sealed: bool = False
    table: bool = False
    remote: bool = True  # or the operator's own file, whose refusals need no reason for a wire

    def read(self, data: bytes) -> bool:
        """Whether `data` is accepted; anything that is neither that nor a refusal with a reason is raised."""
        try:
            self.parse(data)
        except SecateurError as error:
            assert not self.remote or error.reason is not Reason.INTERNAL, "a refusal without a reason"
            assert len(error.message) < 4000, "a refusal that repeats what it was given"
            return False
        return True

    def read_quietly(self, data: bytes) -> None:
        """The same for a fuzzer, which takes no answer."""
        self.read(data)


def reseal(data: bytes, table: bool) -> bytes:
    """The length and the digest that the sender of these bytes would have put into the header."""
    if len(data) < _HEADER:
        return data
    edited = bytearray(data)
    struct.pack_into("<Q", edited, 8, len(edited) - _HEADER)
    end = len(edited)
    if table and len(edited) >= _HEADER + 8:
        end = _HEADER + 8 + 48 * int(struct.unpack_from("<I", edited, _HEADER)[0])
    edited[48:_HEADER] = hashlib.sha256(edited[:48] + edited[_HEADER:end]).digest()
    return bytes(edited)


def _key_set(records: list[KeyRecord]) -> bytes:
    file = io.BytesIO()
    spec = KeySetSpec(tuple(KeyRequest(r.element, r.level) for r in records))
    with KeySetWriter(file, PARAMS, spec) as writer:
        for record in records:
            writer.write(record)
    return file.getvalue()


def _good_codec() -> list[bytes]:
    return [
        encode_ciphertexts([ciphertext(1), ciphertext(0, generator="blake2xb")], PARAMS),
        encode_ciphertexts([ciphertext(0, size=3)], PARAMS),
        encode_ciphertexts([], PARAMS),
        encode_key(key(3, 0, False), PARAMS),
        encode_key(key(0, 1, True), PARAMS),
        encode_public_key(public_key(True), PARAMS),
    ]


def _decode(data: bytes) -> None:
    """By the decoder of the kind that the object says it is."""
    kind = data[6] if len(data) > 6 else 0
    if kind == 2:
        decode_public_key(data, PARAMS)
    elif kind == 3:
        decode_key(data, PARAMS)
    else:
        decode_ciphertexts(data, PARAMS, max_count=4)


def _good_key_sets() -> list[bytes]:
    return [_key_set([key(0, 1, True), key(3, 0, True)]), _key_set([key(5, 0, False)]), _key_set([])]


def _read_key_set(data: bytes) -> None:
    for _ in read_key_set(io.BytesIO(data), PARAMS):
        pass


@cache
def _plan() -> Plan:
    arrays = {"w": np.random.default_rng(9).normal(size=(2, 4)) / 4}
    nodes = (Node("dense", "dense", ("x",), (2,), {}, {"weight": "w"}),)
    ranges = {"x": (-1.0, 1.0), "dense": (-2.0, 2.0)}
    output = OutputSpec("dense", labels=("a", "b"), post_processing="argmax")
    model = CompressedModel("fuzzed", InputSpec("x", (4,)), output, nodes, arrays, ranges=ranges)
    return compile(model, degrees=(4096, 8192), max_error=0.5)


def _good_plans() -> list[bytes]:
    """plan.json, after its length in four bytes, and vectors.safetensors."""
    with tempfile.TemporaryDirectory() as root:
        path = _plan().save(Path(root))
        structure, arrays = ((path / name).read_bytes() for name in ("plan.json", "vectors.safetensors"))
    return [struct.pack("<I", len(structure)) + structure + arrays]


def _read_plan(data: bytes) -> None:
    """A plan whose DIGEST is right: the sender is whoever can write to the operator's models."""
    length = struct.unpack_from("<I", data)[0] if len(data) > 4 else 0
    parts = data[4 : 4 + length], data[4 + length :]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    path = _scratch()
    (path / "plan.json").write_bytes(parts[0])
    (path / "vectors.safetensors").write_bytes(parts[1])
    (path / "DIGEST").write_text(digest.hexdigest())
    Plan.load(path)


@cache
def _scratch() -> Path:
    """One directory for as long as the process lives; in memory, where there is such a place."""
    memory = Path("/dev/shm")
    kept = tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)
    _kept.append(kept)
    return Path(kept.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def _good_configurations() -> list[bytes]:
    example = Path(__file__).parents[2] / "docs" / "secateur-server.toml"
    return [
        example.read_bytes(),
        b'address = "127.0.0.1:0"\n[engine]\nworkers = 2\n[admission.tenants.a]\nweight = 2.0\n',
        b'[identity]\nmode = "jwt"\n[identity.tenants.a]\nmodels = ["m"]\n[jwt]\nkeys = "k.json"\nalgorithms = ["ES256"]\n',
    ]


def _read_configuration(data: bytes) -> None:
    path = _scratch() / "server.toml"
    path.write_bytes(data)
    load_config(path, {})


PARSERS: dict[str, Parser] = {
    "codec": Parser(_decode, _good_codec, sealed=True),
    "key-set": Parser(_read_key_set, _good_key_sets, sealed=True, table=True),
    "client-spec": Parser(ClientSpec.parse, lambda: [_plan().client_spec("1").to_json()]),
    "plan": Parser(_read_plan, _good_plans),
    "configuration": Parser(_read_configuration, _good_configurations, remote=False),
}
