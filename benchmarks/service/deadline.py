"""A caller's short deadline on a long evaluation: how soon the worker is free for the next one.

    python -m benchmarks.service.deadline [--backend native] [--inputs 2048] [--count 3]

Serves one wide encrypted layer with one worker. A request with a deadline of 100 ms (and, as the server then knows how long
such a request takes and would refuse it, further ones that are cancelled after 100 ms) is followed by another one, whose
reply says how long it waited for the worker. Prints one JSON object; exits with 1 where that took more than 250 ms.
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
from protos.gen.secateur.v1 import inference_pb2_grpc
from server.running import start_subprocess

from .targets import real_target
from .traffic import Target

__all__ = ["free_after", "main", "wide_model"]

_PATIENCE_SECONDS = 0.1
_ALLOWED_MS = 250.0
_AFTER_SECONDS = 0.05  # into the first request, when the second one comes


def wide_model(inputs: int) -> CompressedModel:
    """A dense layer of `inputs` by `inputs` and squares."""
    arrays = {"w": np.random.default_rng(0).normal(size=(inputs, inputs)) / inputs**0.5}
    arrays |= {"one": np.ones(()), "zero": np.zeros(())}
    nodes = (
        Node("dense", "dense", ("x",), (inputs,), {}, {"weight": "w"}),
        Node("square", "quadratic", ("dense",), (inputs,), {}, {"a": "one", "b": "zero", "c": "zero"}),
    )
    ranges = {"x": (-1.0, 1.0), "dense": (-6.0, 6.0), "square": (0.0, 36.0)}
    return CompressedModel("wide", InputSpec("x", (inputs,)), OutputSpec("square"), nodes, arrays, ranges=ranges)


def free_after(target: Target, *, cancel: bool) -> tuple[float, float]:
    """(milliseconds after its patience ended that the worker was free, milliseconds that an evaluation takes)."""
    with grpc.insecure_channel(target.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        patience = None if cancel else _PATIENCE_SECONDS
        first = stub.Infer.future(target.request(""), timeout=patience)
        began = time.monotonic()
        time.sleep(_AFTER_SECONDS)
        second = stub.Infer.future(target.request(""), timeout=600)
        arrived = time.monotonic()
        time.sleep(max(0.0, began + _PATIENCE_SECONDS - time.monotonic()))
        if cancel:
            first.cancel()  # type: ignore[no-untyped-call]
        over = time.monotonic()
        timings = second.result().timings
        return max(0.0, timings.queue_ms - (over - arrived) * 1e3), timings.evaluate_ms


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = wide_model(arguments.inputs)
        plan = compile(model, degrees=(arguments.degree,), max_error=1.0)
        plan.save(model.save(directory / "models" / "wide" / "1") / "plan")
        path = directory / "server.toml"
        lines = ['address = "127.0.0.1:0"', 'log_level = "error"', 'models = "models"', 'state = "state"']
        path.write_text("\n".join([*lines, "[engine]", f"backend = {json.dumps(arguments.backend)}"]) + "\n")
        with start_subprocess(path) as server:
            target = real_target(server.address, "wide")
            found = [free_after(target, cancel=k > 0) for k in range(arguments.count)]
    return {
        "settings": vars(arguments),
        "evaluate_ms": round(max(ms for _, ms in found)),
        "free_after_deadline_ms": round(found[0][0], 1),
        "free_after_cancellation_ms": [round(free, 1) for free, _ in found[1:]],
        "ok": max(free for free, _ in found) <= _ALLOWED_MS,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="native")
    parser.add_argument("--inputs", type=int, default=2048)
    parser.add_argument("--degree", type=int, default=16384)
    parser.add_argument("--count", type=int, default=3)
    figures = run(parser.parse_args(arguments))
    print(json.dumps(figures))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
