"""All scripts of one kind, one after the other, and a summary: what `make soak` and `make chaos` run.

    python -m benchmarks.service.together soak|chaos [--share 1.0]

`soak` is load over time, `chaos` is faults under load. `--share` shortens every script alike (0.02 takes some minutes). A
script that takes longer than its limit is ended and has failed. Each prints its JSON object on standard error as it ends;
the last line, on standard output, is one object with all of them and `ok`. Exits with 1 where one failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

__all__ = ["KINDS", "Script", "main", "run_all"]

_START_SECONDS = 180.0  # of a script's limit, whatever its share: to start servers and to end


@dataclass(frozen=True)
class Script:
    """A module beside this one. `amount` is the value of its option `option`, `seconds` what the whole takes at most."""

    name: str
    option: str
    amount: int
    seconds: float
    further: tuple[str, ...] = ()

    def command(self, share: float) -> list[str]:
        amount = max(1, round(self.amount * share))
        return [sys.executable, "-m", f"{__package__}.{self.name}", self.option, str(amount), *self.further]


KINDS: dict[str, tuple[Script, ...]] = {
    "soak": (
        Script("overhead", "--count", 500, 300),
        Script("observing", "--count", 300, 600),
        Script("load", "--seconds", 300, 900),
        Script("uploads", "--count", 20, 900),
        Script("tenants", "--count", 5000, 1200),
        Script("memory", "--seconds", 1800, 2400),
        Script("shared_operands", "--count", 3, 300),
    ),
    "chaos": (
        Script("workers", "--count", 50, 1200),
        Script("commits", "--count", 50, 1200),
        Script("drain", "--count", 10, 900),
        Script("deadline", "--count", 6, 900),
        Script("outages", "--seconds", 30, 600),
    ),
}


def run_all(scripts: tuple[Script, ...], share: float = 1.0) -> dict[str, Any]:
    """Their objects by name, each with `seconds` and `ok`; a script that is not there is left out."""
    reports = {s.name: _run(s, share) for s in scripts if importlib.util.find_spec(f"{__package__}.{s.name}")}
    return {"scripts": reports, "ok": all(report["ok"] for report in reports.values())}


def _run(script: Script, share: float) -> dict[str, Any]:
    started, limit = time.monotonic(), _START_SECONDS + script.seconds * share
    report: dict[str, Any] = {"ok": False}
    try:
        done = subprocess.run(script.command(share), stdout=subprocess.PIPE, text=True, timeout=limit, check=False)
        report = {**_last_object(done.stdout), "ok": done.returncode == 0}
    except subprocess.TimeoutExpired:
        report["failure"] = f"not done after {limit:.0f} s"
    except ValueError:
        report["failure"] = f"printed no JSON object, exit status {done.returncode}"
    report["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps({script.name: report}), file=sys.stderr, flush=True)
    return report


def _last_object(printed: str) -> dict[str, Any]:
    lines = printed.strip().splitlines()
    found = json.loads(lines[-1] if lines else "")
    if not isinstance(found, dict):
        raise ValueError(printed[-100:])
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--share", type=float, default=1.0, help="of each script's count or seconds")
    options = parser.parse_args(arguments)
    report = run_all(KINDS[options.kind], options.share)
    print(json.dumps(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
