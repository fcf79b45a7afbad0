"""A caller's short deadline on a long evaluation: how soon the worker is free for the next one.

    python -m benchmarks.service.deadline [--backend tenseal|native] [--count 6] [--inputs 2048 --layers 4 --degree 16384]

Serves dense encrypted layers with one worker, so many that an evaluation takes more than 5 s on tenseal (and as long as it
takes on native, where a layer is one operation). A request is given up 100 ms after it got to the worker, by its deadline
and by cancellation in turn; another one, which waits behind it and is refused for what it holds, is answered once the
worker is free. Prints one JSON object; exits with 1 where that took more than 250 ms, or where an evaluation was too
short to show it. Takes 6 GB of memory, and minutes to plan and to encode the weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from he_runtime import CompressedModel, compile
from he_runtime.model import InputSpec, Node, OutputSpec
from protos.gen.secateur.v1 import inference_pb2, inference_pb2_grpc
from server.running import start_subprocess

from .targets import real_target
from .traffic import Target

__all__ = ["main", "wide_model"]

_PATIENCE_SECONDS = 0.1
_TRIES = 4  # for each that counts
_ALLOWED_MS = 250.0
_ANY_ERROR = 1e30  # of the plan: what it computes does not matter
_LONG_MS = {"tenseal": 5000.0, "native": 200.0}  # what an evaluation must take at the least
_START_SECONDS = 600.0  # to encode the weights
_AFTER_SECONDS = 0.05  # into the first request, when the second one comes


def wide_model(inputs: int, layers: int = 1) -> CompressedModel:
    """Dense layers, each with squares after it. What comes out is of no interest, how long it takes is."""
    random = np.random.default_rng(0)
    arrays, ranges, nodes, last = {"one": np.ones(()), "zero": np.zeros(())}, {"x": (-1.0, 1.0)}, [], "x"
    for number in range(layers):
        dense, square = f"dense{number}", f"square{number}"
        arrays[f"w{number}"] = random.normal(size=(inputs, inputs)) / inputs**0.5
        nodes.append(Node(dense, "dense", (last,), (inputs,), {}, {"weight": f"w{number}"}))
        nodes.append(Node(square, "quadratic", (dense,), (inputs,), {}, {"a": "one", "b": "zero", "c": "zero"}))
        ranges |= {dense: (-6.0, 6.0), square: (0.0, 36.0)}
        last = square
    return CompressedModel("wide", InputSpec("x", (inputs,)), OutputSpec(last), tuple(nodes), arrays, ranges=ranges)


def free_after(target: Target, reach: float, *, cancel: bool) -> float | None:
    """Milliseconds after a request was given up that the worker had answered another one; None where the first was not at
    the worker yet, or through already. It is given up 100 ms after the `reach` seconds that it needs to get there."""
    with grpc.insecure_channel(target.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        began = time.monotonic()
        over = began + reach + _PATIENCE_SECONDS
        first = stub.Infer.future(target.request(""), timeout=None if cancel else over - began)
        time.sleep(reach + _AFTER_SECONDS)
        second = stub.Infer.future(refused(target.request(""), 64), timeout=600)
        if cancel:
            time.sleep(max(0.0, over - time.monotonic()))
            first.cancel()  # type: ignore[no-untyped-call]
        assert second.code() is grpc.StatusCode.INVALID_ARGUMENT  # waits for it
        answered = time.monotonic()
        was_cut = first.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
        return (answered - over) * 1e3 if was_cut and answered > over else None


def refused(request: inference_pb2.InferRequest, size: int = 0) -> inference_pb2.InferRequest:
    """A request of the same size, or of `size` bytes, that the worker refuses without an evaluation."""
    count = size or len(request.ciphertexts)
    return inference_pb2.InferRequest(model=request.model, key_set_id=request.key_set_id, ciphertexts=bytes(count))


def seconds_to_worker(target: Target) -> float:
    """What a request needs to get to the worker, and a refusal back."""
    times = []
    with grpc.insecure_channel(target.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        for _ in range(3):
            began = time.monotonic()
            stub.Infer.future(refused(target.request("")), timeout=600).code()
            times.append(time.monotonic() - began)
    return min(times)


def evaluation_ms(target: Target) -> float:
    with grpc.insecure_channel(target.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        return float(stub.Infer(target.request(""), timeout=600).timings.evaluate_ms)


def run_one(directory: Path, backend: str, count: int) -> dict[str, Any]:
    """The figures of one back end, of `count` requests that are given up."""
    path = directory / f"{backend}.toml"
    lines = ['address = "127.0.0.1:0"', 'log_level = "error"', 'models = "models"', f'state = "state-{backend}"']
    path.write_text("\n".join([*lines, "[engine]", f"backend = {json.dumps(backend)}"]) + "\n")
    with start_subprocess(path, seconds=_START_SECONDS) as server:
        target = real_target(server.address, "wide")
        reach = seconds_to_worker(target)
        tries: list[float | None] = []
        while sum(free is not None for free in tries) < count and len(tries) < _TRIES * count:
            tries.append(free_after(target, reach, cancel=len(tries) % 2 == 1))
        evaluate_ms = evaluation_ms(target)
    begun = [(place % 2 == 1, free) for place, free in enumerate(tries) if free is not None]
    quick = len(begun) == count and max(free for _, free in begun) <= _ALLOWED_MS
    return {
        "evaluate_ms": round(evaluate_ms),
        "free_after_deadline_ms": [round(free, 1) for cancelled, free in begun if not cancelled],
        "free_after_cancellation_ms": [round(free, 1) for cancelled, free in begun if cancelled],
        "not_counted": len(tries) - len(begun),
        "ok": quick and evaluate_ms >= _LONG_MS[backend],
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        model = wide_model(options.inputs, options.layers)
        plan = compile(model, degrees=(options.degree,), max_error=_ANY_ERROR)
        plan.save(model.save(Path(name) / "models" / "wide" / "1") / "plan")
        chosen = [options.backend] if options.backend else sorted(_LONG_MS)
        figures = {backend: run_one(Path(name), backend, options.count) for backend in chosen}
    return {"settings": vars(options), **figures, "ok": all(one["ok"] for one in figures.values())}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=sorted(_LONG_MS), help="this one only")
    parser.add_argument(
        "--count", type=int, default=6, help="requests that are given up, every second one by cancellation"
    )
    parser.add_argument("--inputs", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--degree", type=int, default=16384)
    figures = run(parser.parse_args(arguments))
    print(json.dumps(figures))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
