"""The header that every object on the wire begins with, and the digest that covers it.

80 bytes, little-endian: magic `SCTR`, wire version (u16), kind (u16), length of the body (u64), digest of the
parameters (32 bytes), digest of the object (32 bytes). The last is the sha256 of the 48 bytes before it and the body;
for a key set, of the 48 bytes and the table, which holds the digest of every record.

There is a kind for each public object and none for a secret key.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from ..errors import KeyMismatch, ParameterError, Reason, WireError
from ..params import CkksParams

__all__ = ["HEADER_BYTES", "Buffer", "Header", "Kind", "open_object", "pack_header", "pack_object", "read_header"]

Buffer: TypeAlias = bytes | bytearray | memoryview

MAGIC = b"SCTR"
WIRE_VERSION = 1
_PREFIX = struct.Struct("<4sHHQ32s")
_DIGEST_BYTES = 32
HEADER_BYTES = _PREFIX.size + _DIGEST_BYTES


class Kind(IntEnum):
    CIPHERTEXTS = 1
    PUBLIC_KEY = 2
    KEY = 3
    KEY_SET = 4


_NAMES = {
    Kind.CIPHERTEXTS: "ciphertexts",
    Kind.PUBLIC_KEY: "a public key",
    Kind.KEY: "an evaluation key",
    Kind.KEY_SET: "a key set",
}


@dataclass(frozen=True)
class Header:
    """A header whose magic, version and kind are known; `prefix` is what the digest covers of it."""

    kind: Kind
    body_bytes: int
    params_digest: bytes
    digest: bytes
    prefix: bytes

    @property
    def name(self) -> str:
        return _NAMES[self.kind]

    def check_params(self, params: CkksParams) -> None:
        """Raise KeyMismatch (for keys) or ParameterError (for ciphertexts) unless made for `params`."""
        if self.params_digest == bytes.fromhex(params.digest):
            return
        text = f"cannot read {self.name}: got one made for parameters {self.params_digest.hex()[:12]}, need {params.digest[:12]}"
        if self.kind is Kind.CIPHERTEXTS:
            raise ParameterError(f"{text}; try encrypting with the current client spec")
        raise KeyMismatch(f"{text}; try keys made from the current client spec", Reason.KEY_PARAMETERS_DIFFER)

    def check_digest(self, body: Buffer) -> None:
        state = hashlib.sha256(self.prefix)
        state.update(body)
        if state.digest() != self.digest:
            raise WireError(
                f"cannot read {self.name}: got bytes that do not have the digest in their header; try sending it again",
                Reason.DIGEST_MISMATCH,
            )


def read_header(data: Buffer, kind: Kind) -> Header:
    """The header at the start of `data`. Raises WireError for another magic, version or kind."""
    name = _NAMES[kind]
    if len(data) < HEADER_BYTES:
        raise WireError(
            f"cannot read {name}: got {len(data)} bytes, need a header of {HEADER_BYTES}; try sending it again",
            Reason.BYTES_TRUNCATED,
        )
    magic, version, number, body_bytes, params_digest = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise WireError(
            f"cannot read {name}: got bytes that do not begin with {MAGIC.decode()!r}; try this project's codec"
        )
    if version != WIRE_VERSION:
        raise WireError(
            f"cannot read {name}: got wire version {version}, need {WIRE_VERSION}; try client and server of one release",
            Reason.VERSION_UNKNOWN,
        )
    if number != kind:
        raise WireError(f"cannot read {name}: got an object of kind {number}, need {kind.value}; try sending {name}")
    digest = bytes(data[_PREFIX.size : HEADER_BYTES])
    return Header(kind, body_bytes, params_digest, digest, bytes(data[: _PREFIX.size]))


def open_object(data: Buffer, kind: Kind, params: CkksParams) -> memoryview:
    """The body of a whole object, once its length, digest and parameters are checked."""
    header = read_header(data, kind)
    got = len(data) - HEADER_BYTES
    if got != header.body_bytes:
        reason = Reason.BYTES_TRUNCATED if got < header.body_bytes else Reason.BYTES_MALFORMED
        raise WireError(
            f"cannot read {header.name}: got a body of {got} bytes, need {header.body_bytes}; try sending it again",
            reason,
        )
    body = memoryview(data)[HEADER_BYTES:]
    header.check_digest(body)
    header.check_params(params)
    return body


def pack_header(kind: Kind, params: CkksParams, body_bytes: int, covered: Sequence[Buffer]) -> bytes:
    """A header for a body of `body_bytes`, with the digest of the pieces `covered`."""
    prefix = _PREFIX.pack(MAGIC, WIRE_VERSION, kind, body_bytes, bytes.fromhex(params.digest))
    state = hashlib.sha256(prefix)
    for piece in covered:
        state.update(piece)
    return prefix + state.digest()


def pack_object(kind: Kind, params: CkksParams, pieces: Sequence[Buffer]) -> bytes:
    """A whole object whose body is the concatenation of `pieces`."""
    header = pack_header(kind, params, sum(len(p) for p in pieces), pieces)
    return b"".join((header, *pieces))
