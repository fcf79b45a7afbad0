"""What is served, and a tenant's half of it: three small models, secrets, key sets and good requests."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from he_runtime import CompressedModel
from he_runtime.backends import seal_bridge
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.client_spec import ClientSpec
from he_runtime.model import InputSpec, Node, OutputSpec
from he_runtime.ring import CiphertextData, KeySetSpec, SeededPoly
from he_runtime.wire import KeySetWriter, encode_ciphertexts, expand_seed
from tests.server.harness import sha256

__all__ = ["INPUTS", "Side", "key_set", "models"]

INPUTS = {"tiny": np.linspace(-1, 1, 8), "other": np.linspace(-1, 1, 4), "narrow": np.linspace(-1, 1, 2)}


@dataclass
class Side:
    """A tenant's half of one model: its spec, a secret, keys in the store, and a good request."""

    spec: ClientSpec
    secret: SecretKey
    key_file: bytes = field(repr=False)
    key_set_id: str = ""

    def encrypted(self, level: int | None = None, scale: float | None = None) -> list[CiphertextData]:
        border = self.spec.input
        slots = border.pack(INPUTS[self.spec.model][None])
        at = border.level if level is None else level
        return [self.secret.encrypt(row, at, scale or border.scale) for row in slots]

    @cached_property
    def request(self) -> bytes:
        """One ciphertext, its second polynomial a seed."""
        return encode_ciphertexts(self.encrypted(), self.spec.params)

    @cached_property
    def request_in_full(self) -> bytes:
        """The same with both polynomials in full."""
        return encode_ciphertexts([self.expanded(c) for c in self.encrypted()], self.spec.params)

    def expanded(self, ct: CiphertextData) -> CiphertextData:
        c0, c1 = ct.polys
        assert isinstance(c1, SeededPoly)
        return replace(
            ct, polys=(c0, expand_seed(c1, self.spec.params.primes[: ct.level + 1], self.spec.params.degree))
        )

    @cached_property
    def smuggled(self) -> dict[str, bytes]:
        """The secret key in the two forms that it is ever stored in."""
        raw = bytes(seal_bridge.save_object(self.secret._secret, secret=True))
        head = b"\n".join((b"secateur secret key 1", self.spec.params.digest.encode(), sha256(raw).encode(), b""))
        return {"SEAL": raw, "file": head + raw}


def key_set(secret: SecretKey, spec: KeySetSpec) -> bytes:
    """The file that a client uploads."""
    file = io.BytesIO()
    with KeySetWriter(file, secret.params, spec) as writer:
        for record in secret.make_keys(spec):
            writer.write(record)
    return file.getvalue()


def _square() -> CompressedModel:
    """8 inputs, a dense layer and a square: two primes, four rotations and a relinearization."""
    arrays = {"w": np.random.default_rng(7).normal(size=(4, 8)) / 4, "one": np.ones(()), "zero": np.zeros(())}
    nodes = (
        Node("dense", "dense", ("x",), (4,), {}, {"weight": "w"}),
        Node("square", "quadratic", ("dense",), (4,), {}, {"a": "one", "b": "zero", "c": "zero"}),
    )
    output = OutputSpec("square", labels=("a", "b", "c", "d"), post_processing="argmax")
    ranges = {"x": (-1.0, 1.0), "dense": (-2.0, 2.0), "square": (0.0, 4.0)}
    return CompressedModel("tiny", InputSpec("x", (8,)), output, nodes, arrays, ranges=ranges)


def _dense(name: str, inputs: int) -> CompressedModel:
    """One dense layer to two outputs. With 4 inputs it needs the keys that it needs with 2, and one more."""
    arrays = {"w": np.random.default_rng(9).normal(size=(2, inputs)) / 4}
    nodes = (Node("dense", "dense", ("x",), (2,), {}, {"weight": "w"}),)
    output = OutputSpec("dense", labels=("a", "b"), post_processing="argmax")
    ranges = {"x": (-1.0, 1.0), "dense": (-2.0, 2.0)}
    return CompressedModel(name, InputSpec("x", (inputs,)), output, nodes, arrays, ranges=ranges)


def models() -> dict[str, CompressedModel]:
    return {"tiny": _square(), "other": _dense("other", 4), "narrow": _dense("narrow", 2)}
