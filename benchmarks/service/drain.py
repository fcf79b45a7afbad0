"""Restarts and version changes under load: no request may fail, none may be evaluated twice.

    python -m benchmarks.service.drain [--count 10] [--clients 8]

Clients ask one request after the other and come back on UNAVAILABLE, as any client does; half of them name the client spec that they
packed by. Meanwhile in each round a new version is loaded and becomes the default, the default is set back, the new
version is unloaded, and the server is told to end by SIGTERM and started again on the same port and state.
Prints one JSON object, and exits with 1 where a request failed, got a wrong answer or was evaluated twice.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from protos.gen.secateur.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc
from protos.status import from_rpc_error
from server.running import RunningServer, start_subprocess

from .fakes import spec_digest, write_config
from .targets import evaluations, fake_target
from .traffic import Target, percentile

__all__ = ["changes_under_load", "main"]

_BETWEEN = 4  # answers of each client between two changes
_WORK_MS = 5.0
_PAYLOAD_BYTES = 20_000
_CALL_SECONDS = 30.0
_PATIENCE_SECONDS = 60.0  # of a client, over all its attempts at one request
_PAUSE_SECONDS = 0.1  # before a client tries again that was not told when
_CHANNEL_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


@dataclass
class _Seen:
    """What became of the requests."""

    failures: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)  # after which the client came back
    versions: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    answered: asyncio.Condition = field(default_factory=asyncio.Condition)
    ended: bool = False

    async def more(self, count: int) -> None:
        """Return once `count` more requests are answered."""
        wanted = len(self.seconds) + count
        async with self.answered:
            await asyncio.wait_for(self.answered.wait_for(lambda: len(self.seconds) >= wanted), _PATIENCE_SECONDS)


async def _client(number: int, target: Target, seen: _Seen) -> None:
    async with grpc.aio.insecure_channel(target.address, _CHANNEL_OPTIONS) as channel:
        infer = inference_pb2_grpc.InferenceServiceStub(channel).Infer
        for k in itertools.count():
            if seen.ended:
                return
            started = time.monotonic()
            request = target.request(f"{number}-{k}")
            if number % 2:
                request.client_spec_digest = spec_digest()
            reason = await _ask(infer, request, target, seen)
            if reason:
                seen.failures[reason] += 1
            async with seen.answered:
                seen.seconds.append(time.monotonic() - started)
                seen.answered.notify_all()


async def _ask(infer: Any, request: inference_pb2.InferRequest, target: Target, seen: _Seen) -> str:
    """One request with its repetitions; why it failed in the end, or nothing."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            reply = await infer(request, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            if failure.code is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                return f"{failure.code.name} {failure.reason}"
            seen.refusals[failure.reason] += 1
            await asyncio.sleep(min(failure.retry_after_seconds or _PAUSE_SECONDS, _PAUSE_SECONDS))
        else:
            seen.versions[reply.version] += 1
            named = request.client_spec_digest and reply.version != "1"
            return "WRONG_REPLY" if named or not target.is_right(request.request_id, reply.ciphertexts) else ""


class _Operator:
    """What an operator does, again and again; keeps how long each step took."""

    def __init__(self, directory: Path, seen: _Seen, clients: int) -> None:
        self._directory = directory
        self._seen = seen
        self._clients = clients
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._environment = {"SECATEUR_SERVER_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}"}
        self._admin = f"unix:{directory}/admin.sock"
        sections = {"admin": {"address": self._admin}, "engine": {"workers": 2}}
        self._config = write_config(directory, sections)
        self.seconds: dict[str, list[float]] = {"version_change": [], "drain": [], "restart": []}
        self.server = self._start()

    def _start(self) -> RunningServer:
        return start_subprocess(self._config, self._environment)

    async def round(self, number: int) -> None:
        await self._change_versions(str(number + 2))
        await self._seen.more(_BETWEEN * self._clients)
        await self._restart()
        await self._seen.more(_BETWEEN * self._clients)

    async def _change_versions(self, version: str) -> None:
        models = self._directory / "models" / "digits"
        await asyncio.to_thread(shutil.copytree, models / "1", models / version)
        started = time.monotonic()
        async with grpc.aio.insecure_channel(self._admin) as channel:
            admin = admin_pb2_grpc.AdminServiceStub(channel)
            await admin.LoadModel(admin_pb2.LoadModelRequest(model="digits", version=version))
            self.seconds["version_change"].append(time.monotonic() - started)
            await self._seen.more(self._clients)
            await admin.SetDefault(admin_pb2.SetDefaultRequest(model="digits", version="1"))
            await admin.UnloadModel(admin_pb2.UnloadModelRequest(model="digits", version=version))
        await asyncio.to_thread(shutil.rmtree, models / version)
        (self._directory / "state" / "models" / "defaults.json").unlink(missing_ok=True)

    async def _restart(self) -> None:
        process = self.server.process
        assert process is not None
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait)
        self.seconds["drain"].append(time.monotonic() - started)
        self.server.stop()
        self.server = await asyncio.to_thread(self._start)
        self.seconds["restart"].append(time.monotonic() - started)


async def _run(directory: Path, count: int, clients: int) -> dict[str, Any]:
    seen, log = _Seen(), directory / "evaluations"
    operator = await asyncio.to_thread(_Operator, directory, seen, clients)
    try:
        target = await asyncio.to_thread(fake_target, operator.server.address, log, _WORK_MS, _PAYLOAD_BYTES)
        tasks = [asyncio.create_task(_client(number, target, seen)) for number in range(clients)]
        await seen.more(clients)
        for number in range(count):
            await operator.round(number)
        seen.ended = True
        await asyncio.gather(*tasks)
    finally:
        await asyncio.to_thread(operator.server.stop)
    evaluated = evaluations(log)
    twice = sum(times > 1 for times in evaluated.values())
    ok = not seen.failures and not twice and len(evaluated) == len(seen.seconds)
    return {
        "rounds": count,
        "requests": len(seen.seconds),
        "failures": dict(seen.failures),
        "evaluated": len(evaluated),
        "evaluated_twice": twice,
        "came_back": dict(seen.refusals),
        "versions": len(seen.versions),
        "longest_request_s": round(max(seen.seconds), 2),
        **{f"{name}_s_p50": round(percentile(taken, 0.5), 2) for name, taken in operator.seconds.items()},
        "ok": ok,
    }


def changes_under_load(directory: Path, count: int, clients: int = 8) -> dict[str, Any]:
    """`count` rounds under the load of so many clients; the figures."""
    return asyncio.run(_run(directory, count, clients))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=10, help="rounds")
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="secateur-drain-") as place:
        report = changes_under_load(Path(place), options.count, options.clients)
    print(json.dumps(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
