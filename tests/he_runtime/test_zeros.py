"""An encryption of zero is for a single use: every way to use one twice, to copy it or to publish it fails."""

from __future__ import annotations

import ast
import copy
import pickle
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tenseal")

import he_runtime
from he_runtime import wire
from he_runtime.backends import zeros as zeros_module
from he_runtime.backends.hybrid_keys import make_key, secret_residues
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.backends.zeros import PublicKeyZeros, SymmetricZeros, Zero, ZeroSource
from he_runtime.errors import SecateurError, WireError
from he_runtime.gadget import Gadget
from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import CiphertextData, KeyRecord, KeyRequest, KeySetSpec, PublicKeyData, SeededPoly

_PRIMES = find_primes(1024, [46, 45, 40, 35])
PARAMS = CkksParams(1024, tuple(_PRIMES[2:]), tuple(_PRIMES[:2]), insecure=True)
SOURCES: dict[str, Callable[..., ZeroSource]] = {"symmetric": SymmetricZeros, "public key": PublicKeyZeros}


@pytest.fixture(scope="module")
def secret() -> SecretKey:
    return SecretKey.generate(PARAMS)


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, secret: SecretKey) -> ZeroSource:
    return SOURCES[request.param](PARAMS, secret._context, secret._secret)


def test_both_sources_draw_zeros(source: ZeroSource, secret: SecretKey) -> None:
    """b + a s is small under every prime, and no two are alike."""
    chain = (*PARAMS.primes, *PARAMS.special)
    first, second = source.draw().consume(), source.draw().consume()
    assert not np.array_equal(first[0], second[0])
    for b, a in (first, second):
        assert isinstance(a, SeededPoly) == isinstance(source, SymmetricZeros)
        rows = wire.expand_seed(a, chain, 1024) if isinstance(a, SeededPoly) else a
        assert b.shape == rows.shape == (4, 1024)
        ct = CiphertextData(1, 2.0**30, (b[:2].copy(), rows[:2].copy()))
        assert np.abs(secret.decrypt(ct)).max() < 2.0**-18


def test_a_second_use_fails(source: ZeroSource) -> None:
    zero = source.draw()
    zero.consume()
    for _ in range(2):
        with pytest.raises(SecateurError, match="twice"):
            zero.consume()


def test_of_many_threads_one_gets_it(source: ZeroSource) -> None:
    zero, got, failed = source.draw(), [], []
    barrier = threading.Barrier(8)

    def use() -> None:
        barrier.wait()
        try:
            got.append(zero.consume())
        except SecateurError:
            failed.append(1)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(failed)) == (1, 7)


COPIES: dict[str, Callable[[Any], object]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "a list of it": lambda z: copy.deepcopy([z]),
    **{f"pickle {p}": partial(pickle.dumps, protocol=p) for p in range(pickle.HIGHEST_PROTOCOL + 1)},
    "array": np.asarray,
    "stack": lambda z: np.stack([z, z]),
    "iterate": list,
    "index": lambda z: z[0],
    "bytes": bytes,
    "vars": vars,
}


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("used", [False, True])
def test_it_cannot_be_copied_pickled_or_looked_into(source: ZeroSource, name: str, used: bool) -> None:
    zero = source.draw()
    if used:
        zero.consume()
    with pytest.raises(TypeError):
        COPIES[name](zero)
    assert repr(zero) == str(zero) == f"{zero}" == "Zero(<redacted>)"


def residues() -> np.ndarray:
    return np.ones((4, 1024), np.uint64)


PUBLICATIONS: dict[str, Callable[[Any], bytes]] = {
    "public key": lambda z: wire.encode_public_key(z, PARAMS),
    "halves of a public key": lambda z: wire.encode_public_key(PublicKeyData((z, z)), PARAMS),
    "half of a public key": lambda z: wire.encode_public_key(PublicKeyData((residues(), z)), PARAMS),
    "key": lambda z: wire.encode_key(z, PARAMS),
    "digit": lambda z: wire.encode_key(KeyRecord(3, 1, (z,), "hybrid-2"), PARAMS),
    "halves of a digit": lambda z: wire.encode_key(KeyRecord(3, 1, ((z, z),), "hybrid-2"), PARAMS),
    "half of a digit": lambda z: wire.encode_key(KeyRecord(3, 1, ((residues(), z),), "hybrid-2"), PARAMS),
    "ciphertext": lambda z: wire.encode_ciphertexts([z], PARAMS),
    "polynomials": lambda z: wire.encode_ciphertexts([CiphertextData(1, 2.0, (z, z))], PARAMS),
    "polynomial": lambda z: wire.encode_ciphertexts([CiphertextData(1, 2.0, (residues()[:2], z))], PARAMS),
}


@pytest.mark.parametrize("name", PUBLICATIONS)
@pytest.mark.parametrize("used", [False, True])
def test_it_cannot_be_published(source: ZeroSource, name: str, used: bool) -> None:
    zero = source.draw()
    if used:
        zero.consume()
    with pytest.raises((WireError, TypeError, AttributeError)):
        PUBLICATIONS[name](zero)


def test_a_key_consumes_its_zeros_and_public_keys_are_others(
    secret: SecretKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every zero that keys and public keys draw is used up, none by two of them, and no mask appears twice."""
    drawn: list[Zero] = []
    original = SymmetricZeros.draw

    def draw(self: SymmetricZeros) -> Zero:
        drawn.append(original(self))
        return drawn[-1]

    monkeypatch.setattr(SymmetricZeros, "draw", draw)
    spec = KeySetSpec((KeyRequest(0, 1), KeyRequest(3, 1), KeyRequest(3, 0)), "hybrid-1")
    keys = list(secret.make_keys(spec))
    public = [secret.public_key() for _ in range(2)]
    assert len(drawn) == len({id(z) for z in drawn}) == 5 + 2
    for zero in drawn:
        with pytest.raises(SecateurError, match="twice"):
            zero.consume()
    masks = [a for record in keys for _, a in record.digits] + [key.polys[1] for key in public]
    assert len({a.seed for a in masks if isinstance(a, SeededPoly)}) == 7


def test_a_zero_that_was_used_cannot_make_a_key(secret: SecretKey, source: ZeroSource) -> None:
    zero = source.draw()

    class Again:
        def draw(self) -> Zero:
            return zero

    with secret_residues(PARAMS, secret._secret) as rows:
        make_key(PARAMS, Gadget.parse("hybrid-2"), KeyRequest(3, 1), rows, Again())
        with pytest.raises(SecateurError, match="twice"):
            make_key(PARAMS, Gadget.parse("hybrid-2"), KeyRequest(9, 1), rows, Again())
        with pytest.raises(SecateurError, match="twice"):
            make_key(PARAMS, Gadget.parse("hybrid-1"), KeyRequest(9, 1), rows, Again())


def test_two_places_use_zeros_and_one_module_makes_them() -> None:
    """Whoever adds a third use of a zero has to come by here, and by SECURITY.md."""
    uses, makers = [], []
    root = Path(he_runtime.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "consume":
                uses.append(path.relative_to(root).as_posix())
            called = node.func if isinstance(node, ast.Call) else None
            names = {getattr(called, "id", None), getattr(called, "attr", None)}
            if names & {"Zero", "encrypt_zero_symmetric", "encrypt_zero", "create_public_key"}:
                makers.append(path.relative_to(root).as_posix())
    assert uses == ["backends/hybrid_keys.py", "backends/tenseal_secret.py"]
    assert set(makers) == {"backends/zeros.py"} == {Path(zeros_module.__file__).relative_to(root).as_posix()}
