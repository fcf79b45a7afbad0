"""`python -m tests.hostile.fuzz_service`: the hostile corpus at length, and one JSON object of what came of it.

A run is resumed by --start, and one case repeated by --seed, --start and --count 1: its failures say which.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.hostile.corpus import play
from tests.hostile.world import serving


def _tell(index: int) -> None:
    """How far it is, for whoever waits, and to go on from after an interruption."""
    if index % 1000 == 0:
        print(f"case {index}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz_service", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="cases to play")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--workers", type=int, default=1, help="of the server")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root, serving(Path(root), asked.workers) as world:
        report = play(world, asked.seed, asked.start, asked.count, _tell)
    print(json.dumps(vars(report), indent=1))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
