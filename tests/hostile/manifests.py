"""Key sets offered in pieces by manifests that are none, do not add up, or name what nobody has."""

from __future__ import annotations

import random
from typing import Any

from protos.gen.secateur.v1 import keys_pb2
from protos.manifest import Piece, pack_manifest
from tests.hostile.case import ACCEPTED, U64, Case, Group, nth, refusal
from tests.hostile.world import ACME, World
from tests.server.harness import sha256

__all__ = ["MANIFESTS"]


def _manifests(rng: random.Random, n: int, world: World) -> Case:
    """None of them begins an upload."""
    side = world.sides["other"]
    pieces = [Piece(rng.randbytes(32).hex(), size) for size in (100, 5000, 4096)]
    good, total = pack_manifest(pieces), 9196

    def offer(reason: str, manifest: bytes = good, **changes: Any) -> tuple[str, bytes]:
        fields = {"total_bytes": total, "sha256": sha256(manifest), "manifest": manifest, **changes}
        about = {"params_digest": side.spec.params.digest, "client_spec_digest": side.spec.digest}
        return reason, keys_pb2.CreateUploadRequest(**{**about, **fields}).SerializeToString()

    def sized(size: int, at: int) -> bytes:
        changed = [Piece(p.sha256, size if k == at else p.total_bytes) for k, p in enumerate(pieces)]
        return pack_manifest(changed)

    huge = nth(U64, n // 13)
    many = nth((4097, 5000, 20_000), n // 13) * 40
    made = [
        offer("BYTES_MALFORMED", good[: rng.randrange(1, len(good))]),
        offer("BYTES_MALFORMED", rng.randbytes(rng.randrange(1, 4000))),
        offer("BYTES_MALFORMED", rng.randbytes(40 * rng.randrange(1, 100))),
        offer("BYTES_MALFORMED", sized(huge, at=rng.randrange(3))),
        offer("BYTES_MALFORMED", sized((1 << 64) - 100, at=0), total_bytes=8996),
        offer("BYTES_MALFORMED", good + good[80:], total_bytes=total + 4096),
        offer("BYTES_MALFORMED", sized(4095, at=2), total_bytes=9195),
        offer("BYTES_MALFORMED", good + bytes(40)),
        offer("LIMIT_EXCEEDED", rng.randbytes(1000) + bytes(many - 1000)),
        offer("BYTES_MALFORMED", total_bytes=rng.choice([total - 1, total + 1, 1])),
        offer("BYTES_MALFORMED", sha256=sha256(good + b"\0")),
        offer("BYTES_MALFORMED", assumed=rng.choice([b"\x01", b"\x02\x00\x00", bytes(4), bytes(1 << 16)])),
        offer("", assumed=rng.choice([b"\x00\x01\x01", b"\x01\x01\x01", b"\x01\x00\x00"])),
    ]
    reason, data = nth(made, n)
    expected = refusal(reason) if reason else ACCEPTED
    name = f"manifest {n % len(made)}"
    return Case.of(name, expected, lambda world: world.call("KeyService/CreateUpload", data, tenant=ACME))


MANIFESTS: dict[str, Group] = {"uploads in pieces": _manifests}
