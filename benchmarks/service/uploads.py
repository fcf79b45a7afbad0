"""Uploads of keys over the loopback interface: speed, memory of the front door, random cuts, and one beyond 2 GiB.

    python -m benchmarks.service.uploads [--mib 512] [--count 20] [--no-large]

The server is a process of its own with a runtime that has no HE library, the client is the project's own uploader. Prints
one JSON object: `speed` of whole uploads, `cuts` through a proxy that drops connections at random places, `large`.
Exits with 1 where a figure misses its goal (not so for the speed of a machine that does other things meanwhile).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from client import upload as upload_module
from client.spool import Stream
from client.transport import Transport
from client.upload import Uploader, chunk_size
from protos.manifest import Segments
from protos.native import UploadOffer

from .cutting import CuttingProxy
from .fakes import PARAMS, fake_server, spec_digest

__all__ = ["cuts", "large", "main", "speed"]

_MIB = 1 << 20
_SOON = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]  # a cut is no outage
_GOAL_MIB_S = 200.0
_GOAL_MEMORY_MIB = 64.0


@dataclass
class FileSpool:
    """What the uploader needs of a spool, around any file."""

    path: Path
    sha256: str
    total_bytes: int
    known: str | None = field(default=None)
    assumed: frozenset[int] = frozenset()

    def offer(self, params_digest: str, client_spec_digest: str) -> UploadOffer:
        return UploadOffer(params_digest, client_spec_digest, self.total_bytes, self.sha256)

    def stream(self, missing: Sequence[int] = ()) -> Stream | None:
        return None if missing else Stream(self.path, Segments([(0, self.total_bytes)]))

    def upload_id(self) -> str | None:
        return self.known

    def remember_upload(self, upload_id: str | None) -> None:
        self.known = upload_id

    def drop(self) -> None: ...


def make_spool(directory: Path, total_bytes: int, seed: int) -> FileSpool:
    """A file of pseudo-random bytes, a MiB of them repeated with its number: every chunk differs from the next."""
    path, block = directory / f"spool{seed}", bytearray(random.Random(seed).randbytes(_MIB))
    hasher = hashlib.sha256()
    directory.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for number in range(0, total_bytes, _MIB):
            block[:8] = b"KEYS" + (number // _MIB).to_bytes(4, "little")
            piece = memoryview(block)[: total_bytes - number]
            file.write(piece)
            hasher.update(piece)
    return FileSpool(path, hasher.hexdigest(), total_bytes)


def _memory(pid: int, name: str) -> float:
    """VmRSS or VmHWM of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


@contextmanager
def _transport(address: str) -> Iterator[Transport]:
    channel = grpc.insecure_channel(address, options=_SOON)
    transport = Transport(channel, address, timeout_seconds=120.0)
    try:
        yield transport
    finally:
        transport.close()


def _upload(transport: Transport, spool: FileSpool) -> None:
    found = Uploader(transport, _MIB).upload(spool, PARAMS, spec_digest())  # type: ignore[arg-type]
    assert found.sha256 == spool.sha256


def speed(directory: Path, total_bytes: int, rounds: int = 3) -> dict[str, Any]:
    """Whole uploads, one after the other, the best of them; memory is the front door's peak beyond what it had."""
    with fake_server(directory) as server, _transport(server.address) as transport:
        assert server.process is not None
        pid, rates, extra = server.process.pid, [], 0.0
        for number in range(rounds):
            spool = make_spool(directory, total_bytes, number)
            before = _memory(pid, "VmRSS")
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
            started = time.monotonic()
            _upload(transport, spool)
            rates.append(total_bytes / _MIB / (time.monotonic() - started))
            extra = max(extra, _memory(pid, "VmHWM") - before)
            spool.path.unlink()
    return {
        "mib": total_bytes // _MIB,
        "mib_per_second": [round(rate) for rate in rates],
        "best_mib_per_second": round(max(rates)),
        "extra_memory_mib": round(extra, 1),
        "fast_enough": max(rates) >= _GOAL_MIB_S,
        "ok": extra <= _GOAL_MEMORY_MIB,
    }


def cuts(directory: Path, count: int, total_bytes: int = 64 * _MIB, seed: int = 0) -> dict[str, Any]:
    """One upload whose connection is cut `count` times; what reached the server twice, in chunks for each cut."""
    chooser = random.Random(seed)
    spool = make_spool(directory, total_bytes, 100 + seed)
    apart = total_bytes // (count + 1)
    limits = [chooser.randrange(apart // 2, apart) for _ in range(count)]
    with fake_server(directory) as server, CuttingProxy(server.address, limits) as proxy:
        pause, upload_module._BACKOFF_SECONDS = upload_module._BACKOFF_SECONDS, 0.01
        try:
            with _transport(proxy.address) as transport:
                _upload(transport, spool)
        finally:
            upload_module._BACKOFF_SECONDS = pause
        sent = proxy.forwarded
    spool.path.unlink()
    chunk = chunk_size(_MIB)
    again = (sum(sent) - total_bytes) / max(1, proxy.cuts)
    return {
        "cuts": proxy.cuts,
        "chunk_bytes": chunk,
        "sent_again_bytes_per_cut": round(again),
        "chunks_sent_again_per_cut": round(again / chunk, 2),
        "ok": proxy.cuts == count
        and again <= chunk * 1.05,  # the frames of HTTP/2 and the calls between cuts count too
    }


def large(directory: Path, total_bytes: int = (2 << 30) + (100 << 20) + 7) -> dict[str, Any]:
    """An upload beyond 2 GiB, committed and found again."""
    spool = make_spool(directory, total_bytes, 200)
    with fake_server(directory) as server, _transport(server.address) as transport:
        started = time.monotonic()
        _upload(transport, spool)
        seconds = time.monotonic() - started
        assert server.process is not None
        peak = _memory(server.process.pid, "VmHWM")
        spool.known = None
        _upload(transport, spool)  # answered at once: the server has these bytes
    spool.path.unlink()
    return {"bytes": total_bytes, "seconds": round(seconds, 1), "front_door_peak_mib": round(peak), "ok": True}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--mib", type=int, default=512, help="size of the timed uploads")
    parser.add_argument("--count", type=int, default=20, help="cuts")
    parser.add_argument("--no-large", action="store_true", help="leave out the upload beyond 2 GiB")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="secateur-uploads-") as place:
        directory = Path(place)
        report: dict[str, Any] = {"speed": speed(directory / "speed", options.mib * _MIB)}
        report["cuts"] = cuts(directory / "cuts", options.count)
        if not options.no_large:
            report["large"] = large(directory / "large")
    report["ok"] = all(part["ok"] for part in report.values())
    print(json.dumps(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
