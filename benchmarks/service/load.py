"""More clients than the workers can serve: what is still served, how fast the rest is turned away, and that no request is
lost or answered twice.

    python -m benchmarks.service.load [--seconds 60] [--clients 64] [--multiple 2] [--work-ms 100] [--model DIR]

Three phases: saturated (a few clients, each asks again at once), overload (all clients together at `multiple` times the
goodput of that, at random times, nobody tries again), and patient (all clients ask again and again and come back when
they are told to). The work is sleep, so that the figures are the service's; with --model (a served directory of models)
it is encrypted inference on the default back end. Prints one JSON object; exits with 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.running import RunningServer, start_subprocess

from .fakes import fake_server
from .targets import evaluations, fake_target, real_target
from .traffic import Answer, Clients, Target, tally

__all__ = ["load", "main"]

_REFUSALS = frozenset({"SERVER_BUSY", "LIMIT_EXCEEDED"})
_TARGETS = {"goodput_ratio_at_least": 0.9, "refusal_p99_ms_below": 50.0, "lost": 0, "doubled": 0}


async def load(target: Target, log: Path | None, *, seconds: float, clients: int, multiple: float) -> dict[str, Any]:
    """All three phases, of which overload takes `seconds` and the others a third of that; figures by phase."""
    short = max(1.0, seconds / 3)
    async with Clients(target, 1) as first:
        warm = [await first.ask(0, patient=True) for _ in range(3)]
    async with Clients(target, min(8, clients)) as few:
        saturated = await few.one_after_the_other(short)
        capacity = tally(saturated, short)["goodput_per_s"]
    async with Clients(target, clients) as many:
        overload = await many.at_rate(capacity * multiple, seconds, random.Random(0))
        patient = await many.one_after_the_other(short)
    everybody = [*warm, *saturated, *overload, *patient]
    return {
        "capacity_per_s": capacity,
        "saturated": tally(saturated, short),
        "overload": tally(overload, _span(overload)),
        "patient": tally(patient, _span(patient)),
        "goodput_ratio": round(tally(overload, _span(overload))["goodput_per_s"] / capacity, 3),
        "lost": sum(bool(a.reason) and a.reason not in _REFUSALS for a in everybody),
        "doubled": _doubled(everybody, log),
    }


def _span(answers: Sequence[Answer]) -> float:
    """Seconds from the first request to the last answer."""
    return max(a.ended for a in answers) - min(a.began for a in answers)


def _doubled(answers: Sequence[Answer], log: Path | None) -> int:
    """Requests that were evaluated more than once, or evaluated although their clients were turned away."""
    if log is None:
        return 0
    counts = evaluations(log)
    return sum(counts[a.tag] > (0 if a.reason in _REFUSALS else 1) for a in answers)


def _serve(directory: Path, model: Path | None, workers: int) -> RunningServer:
    if model is None:
        return fake_server(directory, {"engine": {"workers": workers}})
    path = directory / "server.toml"
    lines = ['address = "127.0.0.1:0"', 'log_level = "error"', f"models = {json.dumps(str(model.resolve()))}"]
    path.write_text("\n".join([*lines, 'state = "state"', "[engine]", f"workers = {workers}"]) + "\n")
    return start_subprocess(path)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        directory, log = Path(name), None if arguments.model else Path(name) / "evaluated"
        with _serve(directory, arguments.model, arguments.workers) as server:
            if log is not None:
                target = fake_target(server.address, log, arguments.work_ms, arguments.payload_bytes)
            else:
                target = real_target(
                    server.address, next(p.name for p in sorted(arguments.model.iterdir()) if p.is_dir())
                )
            figures = asyncio.run(
                load(target, log, seconds=arguments.seconds, clients=arguments.clients, multiple=arguments.multiple)
            )
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    return {"settings": settings, "targets": _TARGETS, **figures}


def missed(figures: dict[str, Any]) -> list[str]:
    """Names of the targets that the figures do not reach."""
    reached = {
        "goodput_ratio": figures["goodput_ratio"] >= _TARGETS["goodput_ratio_at_least"],
        "refusal_ms": figures["overload"]["refusal_ms"].get("p99", 0.0) < _TARGETS["refusal_p99_ms_below"],
        "lost": figures["lost"] == 0,
        "doubled": figures["doubled"] == 0,
    }
    return [name for name, good in reached.items() if not good]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the overload")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--multiple", type=float, default=2.0, help="of the capacity")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work-ms", type=float, default=100.0)
    parser.add_argument("--payload-bytes", type=int, default=400_000)
    parser.add_argument("--model", type=Path, help="a directory of served models, the first of which is asked")
    figures = run(parser.parse_args(arguments))
    figures["missed"] = missed(figures)
    figures["ok"] = not figures["missed"]
    print(json.dumps(figures))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
