"""Seeds expand to what docs/wire.md says; agreement with SEAL itself is in tests/he_runtime/test_seal_bridge.py."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest

from he_runtime.errors import WireError
from he_runtime.params import find_primes
from he_runtime.wire import expand_seed, expansion
from tests.wire.arrays import seed


def test_shake256_by_hand() -> None:
    """Without rejection, words are SHAKE-256(seed || k) reduced modulo the prime."""
    poly = seed(1, 3, "shake256")
    (q,) = find_primes(1024, [25])
    stream = b"".join(hashlib.shake_256(poly.seed + struct.pack("<Q", k)).digest(4096) for k in range(2))
    expected = np.frombuffer(stream, dtype="<u8") % np.uint64(q)
    assert np.array_equal(expand_seed(poly, [q], 1024)[0], expected)


def test_rejected_words_come_from_after_the_polynomial() -> None:
    """At 59 to 60 bits some words are rejected; here one word at a time, as docs/wire.md tells it."""
    poly, primes = seed(3, 1, "shake256"), find_primes(2048, [60, 59.5, 60])
    stream = b"".join(hashlib.shake_256(poly.seed + struct.pack("<Q", k)).digest(4096) for k in range(16))
    words = list(struct.unpack(f"<{len(stream) // 8}Q", stream))
    bulk, rest = words[: 3 * 2048], iter(words[3 * 2048 :])
    expected, rejected = [], 0
    for i, word in enumerate(bulk):
        q = primes[i // 2048]
        while word >= (1 << 64) - 1 - ((1 << 64) - 1) % q - 1:
            word, rejected = next(rest), rejected + 1
        expected.append(word % q)
    assert rejected > 0
    assert expand_seed(poly, primes, 2048).ravel().tolist() == expected


def test_uniform() -> None:
    (q,) = find_primes(1024, [40])
    values = expand_seed(seed(1, 9), [q], 1024)[0].astype(np.float64) / q
    assert abs(values.mean() - 0.5) < 5 / np.sqrt(12 * 1024)


def test_the_number_of_primes_must_be_the_seeds() -> None:
    with pytest.raises(WireError, match="2 primes, need 3"):
        expand_seed(seed(3, 0), find_primes(1024, [30, 31]), 1024)


def test_the_largest_word_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threshold itself is rejected, the word below it is kept."""
    (q,) = find_primes(1024, [30])
    threshold = (1 << 64) - 2 - ((1 << 64) - 1) % q

    def stream(_: bytes, first: int, count: int) -> np.ndarray:
        return np.full(512 * count, 42, np.uint64) if first else np.array([threshold, threshold - 1] * 512, np.uint64)

    monkeypatch.setitem(expansion._STREAMS, "blake2xb", stream)
    rows = expand_seed(seed(1, 0), [q], 1024)
    assert set(rows[0, ::2].tolist()) == {42} and set(rows[0, 1::2].tolist()) == {(threshold - 1) % q}
