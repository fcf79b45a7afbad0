"""The arithmetic of manifests: what is where, for every way to split a file and every choice of pieces to send."""

from __future__ import annotations

import random
from hashlib import sha256

import pytest

from protos.manifest import PIECE_BYTES, Piece, Segments, pack_manifest, starts, unpack_manifest

SEEDS = range(60)


def _file(chooser: random.Random) -> tuple[bytes, list[Piece]]:
    parts = [chooser.randbytes(chooser.randint(1, 40)) for _ in range(chooser.randint(1, 12))]
    return b"".join(parts), [Piece(sha256(part).hexdigest(), len(part)) for part in parts]


def test_golden_bytes() -> None:
    manifest = pack_manifest([Piece("ab" * 32, 1), Piece("cd" * 32, 2**40 + 3)])
    assert manifest.hex() == "ab" * 32 + "0100000000000000" + "cd" * 32 + "0300000000010000"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stream_of_some_pieces_lands_where_they_belong(seed: int) -> None:
    chooser = random.Random(seed)
    data, pieces = _file(chooser)
    assert unpack_manifest(pack_manifest(pieces)) == tuple(pieces)
    begins = starts(pieces)
    assert begins[-1] == len(data) and len(begins) == len(pieces) + 1
    missing = [n for n in range(len(pieces)) if chooser.random() < chooser.choice([0.1, 0.5, 0.9, 1.0])]
    stream = b"".join(data[begins[n] : begins[n + 1]] for n in missing)
    segments = Segments((begins[n], pieces[n].total_bytes) for n in missing)
    assert segments.total_bytes == len(stream)

    received, offset, furthest = bytearray(len(data)), 0, 0
    while offset < len(stream):
        count = chooser.randint(1, 30)
        chunk = stream[offset : offset + count]
        at = 0
        for start, length in segments.places(offset, len(chunk)):
            assert length > 0 and start >= furthest, "parts of a file are written from its front to its end"
            received[start : start + length] = chunk[at : at + length]
            at, furthest = at + length, start + length
        assert at == len(chunk)
        offset += len(chunk)
        assert segments.end(offset) == furthest
    for n in range(len(pieces)):
        sent = received[begins[n] : begins[n + 1]]
        assert sent == (data[begins[n] : begins[n + 1]] if n in missing else bytes(pieces[n].total_bytes))


def test_all_pieces_are_the_file_itself_and_none_are_nothing() -> None:
    whole = Segments([(0, 5), (5, 7), (12, 1)])
    assert list(whole.places(3, 10)) == [(3, 10)] and whole.end(0) == 0 and whole.end(13) == 13
    nothing = Segments([])
    assert nothing.total_bytes == 0 and list(nothing.places(0, 0)) == [] and nothing.end(0) == 0


@pytest.mark.parametrize(("offset", "count"), [(-1, 1), (0, 14), (13, 1), (2**63, 1), (0, -1)])
def test_nothing_lies_outside_a_stream(offset: int, count: int) -> None:
    with pytest.raises(ValueError, match="not within a stream of 13"):
        list(Segments([(4, 6), (20, 7)]).places(offset, count))


@pytest.mark.parametrize("length", [1, PIECE_BYTES - 1, PIECE_BYTES + 1, 8])
def test_a_manifest_consists_of_whole_entries(length: int) -> None:
    with pytest.raises(ValueError, match="does not consist"):
        unpack_manifest(bytes(length))
