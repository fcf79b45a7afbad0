"""Writes the golden bytes of the wire format from fixed formulas; run once: python -m tests.vectors.wire.generate

No key and no plaintext is behind these numbers: docs/wire.md states the formulas, so that a codec in another language
can make the same bytes. If a change of the codec alters them, it is a new wire version.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

from he_runtime import wire
from he_runtime.ring import KeyRequest, KeySetSpec
from tests.wire.arrays import DEGREE, HYBRID_PARAMS, PARAMS, ciphertext, hybrid_key, key, public_key, seed

FOLDER = Path(__file__).parent
CIPHERTEXTS = [
    ciphertext(0, scale=2.0**20, size=3, salt=1),
    ciphertext(1, scale=1234567.875, generator="blake2xb", salt=2),
    ciphertext(0, scale=2.0**30 / 3, generator="shake256", salt=3),
]
PUBLIC_KEY = public_key(seeded=True, salt=4)
KEY = key(3, 0, seeded=False, salt=5)
HYBRID_KEY = hybrid_key(5, 2, seeded=True, salt=8)
KEY_SET = KeySetSpec((KeyRequest(0, 0), KeyRequest(2 * DEGREE - 1, 0)))
KEY_SET_RECORDS = [key(r.element, r.level, seeded=True, salt=6 + i) for i, r in enumerate(KEY_SET.requests)]


def key_set() -> bytes:
    file = io.BytesIO()
    with wire.KeySetWriter(file, PARAMS, KEY_SET) as writer:
        for record in KEY_SET_RECORDS:
            writer.write(record)
    return file.getvalue()


def objects() -> dict[str, bytes]:
    return {
        "ciphertexts.bin": wire.encode_ciphertexts(CIPHERTEXTS, PARAMS),
        "public_key.bin": wire.encode_public_key(PUBLIC_KEY, PARAMS),
        "key.bin": wire.encode_key(KEY, PARAMS),
        "key_set.bin": key_set(),
        "hybrid_key.bin": wire.encode_key(HYBRID_KEY, HYBRID_PARAMS),
    }


def description() -> dict[str, Any]:
    """Parameters, file digests, and the sha256 of what two seeds expand to (rows in order, u64 little-endian)."""
    chain = (*PARAMS.primes, *PARAMS.special)
    expansions = [
        {
            "generator": generator,
            "seed": (poly := seed(len(chain), 7, generator)).seed.hex(),
            "primes": list(chain),
            "sha256": hashlib.sha256(wire.expand_seed(poly, chain, DEGREE).astype("<u8").tobytes()).hexdigest(),
        }
        for generator in ("blake2xb", "shake256")
    ]
    return {
        "params": PARAMS.to_json(),
        "params_digest": PARAMS.digest,
        "hybrid_params": HYBRID_PARAMS.to_json(),
        "hybrid_params_digest": HYBRID_PARAMS.digest,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in objects().items()},
        "expansions": expansions,
    }


if __name__ == "__main__":
    for name, data in objects().items():
        (FOLDER / name).write_bytes(data)
    (FOLDER / "vectors.json").write_text(json.dumps(description(), indent=2) + "\n")
