"""`python -m tests.hostile.fuzz_parsers PARSER`: coverage-guided fuzzing of what reads bytes from outside, by atheris.

The only exceptions that may leave a parser are those of he_runtime.errors, and none of them INTERNAL. atheris ends the
process at the first that is none, and writes the bytes that did it to --findings.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["he_runtime", "server.config"]):
    from tests.hostile.parsers import PARSERS, Parser, reseal


def _one_input(parser: Parser) -> object:
    def read(data: bytes) -> None:
        parser.read(data)

    return read


def _mutator(parser: Parser) -> object:
    """Sealed objects are sealed again after most mutations, or nothing behind the digest would ever be reached."""

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        changed = bytes(atheris.Mutate(data, max_size))
        return reseal(changed, parser.table)[:max_size] if seed % 8 else changed

    return mutate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz_parsers", description=__doc__.splitlines()[0])
    parser.add_argument("parser", choices=sorted(PARSERS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", default=".", help="directory for the bytes that broke a parser")
    asked = parser.parse_args()
    chosen = PARSERS[asked.parser]
    with tempfile.TemporaryDirectory() as corpus:
        largest = 0
        for good in chosen.good():
            (Path(corpus) / hashlib.sha256(good).hexdigest()).write_bytes(good)
            largest = max(largest, len(good))
        flags = [
            f"-max_total_time={asked.seconds}",
            f"-seed={asked.seed}",
            f"-max_len={largest + 64}",
            "-rss_limit_mb=2048",
            "-timeout=5",
            "-print_final_stats=1",
            f"-artifact_prefix={asked.findings}/{asked.parser}-",
            corpus,
        ]
        sealed = {"custom_mutator": _mutator(chosen)} if chosen.sealed else {}
        atheris.Setup([sys.argv[0], *flags], _one_input(chosen), **sealed)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
