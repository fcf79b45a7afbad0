"""Seeded mutations of good objects: what fuzzing is where no fuzzer is, and a short form of it in the tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tests.hostile.case import U64
from tests.hostile.parsers import Parser, reseal

__all__ = ["mutated"]

_TEXTS = (b"null", b"NaN", b"-1", b"1e999", b"[]", b"{}", b'""', b"true", b"18446744073709551616", b"\xff", b"\0" * 9)


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _word(data: bytearray, rng: random.Random) -> None:
    size = rng.choice((1, 2, 4, 8))
    at = _near(data, rng)
    data[at : at + size] = (rng.choice(U64) & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _near(data: bytearray, rng: random.Random) -> int:
    """A place, more often near the front, where headers and counts are."""
    return rng.randrange(min(len(data), rng.choice((128, len(data)))) + 1)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[_near(data, rng) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    at = _near(data, rng)
    del data[at : at + rng.randrange(1, 16)]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = _near(data, rng)
    data[at:at] = rng.choice((*_TEXTS, rng.randbytes(rng.randrange(1, 16))))


def _replace(data: bytearray, rng: random.Random) -> None:
    at = _near(data, rng)
    text = rng.choice(_TEXTS)
    data[at : at + rng.choice((1, len(text)))] = text


def _double(data: bytearray, rng: random.Random) -> None:
    at = _near(data, rng)
    piece = data[at : at + rng.randrange(1, 64)]
    data[at:at] = piece


_EDITS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip,
    _word,
    _cut,
    _remove,
    _insert,
    _replace,
    _double,
)


def mutated(parser: Parser, seed: int) -> Iterator[bytes]:
    """Good objects with one to four edits each, without an end; sealed again, most of them, where they have a seal."""
    rng, good = random.Random(seed), parser.good()
    while True:
        data = bytearray(rng.choice(good))
        for _ in range(rng.randrange(1, 5)):
            rng.choice(_EDITS)(data, rng)
        yield reseal(bytes(data), parser.table) if parser.sealed and rng.randrange(8) else bytes(data)
