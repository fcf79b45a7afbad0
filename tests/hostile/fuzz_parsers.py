"""`python -m tests.hostile.fuzz_parsers PARSER`: fuzzing of what reads bytes from outside, guided by coverage (atheris).

The only exceptions that may leave a parser are those of he_runtime.errors, each with a reason. The first that is none
ends the process, and the bytes that did it are in --findings. Without atheris, or with --seeded, mutations of our own
take its place, which no coverage guides.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _guided(asked: argparse.Namespace) -> None:
    import atheris  # type: ignore[import-untyped]

    with atheris.instrument_imports(include=["he_runtime", "server.config"]):
        from tests.hostile.parsers import PARSERS, reseal

    chosen = PARSERS[asked.parser]

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        """Sealed again after most mutations, or nothing behind the digest would ever be reached."""
        changed = bytes(atheris.Mutate(data, max_size))
        return reseal(changed, chosen.table)[:max_size] if seed % 8 else changed

    with tempfile.TemporaryDirectory() as corpus:
        good = chosen.good()
        for data in good:
            (Path(corpus) / hashlib.sha256(data).hexdigest()).write_bytes(data)
        flags = [
            f"-max_total_time={asked.seconds}",
            f"-seed={asked.seed}",
            f"-max_len={max(map(len, good)) + 64}",
            "-rss_limit_mb=2048",
            "-timeout=5",
            "-print_final_stats=1",
            f"-artifact_prefix={asked.findings}/{asked.parser}-",
            corpus,
        ]
        sealed: dict[str, Callable[..., Any]] = {"custom_mutator": mutate} if chosen.sealed else {}
        atheris.Setup([sys.argv[0], *flags], chosen.read_quietly, **sealed)
        atheris.Fuzz()


def _seeded(asked: argparse.Namespace) -> None:
    from tests.hostile.mutations import mutated
    from tests.hostile.parsers import PARSERS

    chosen, end, count = PARSERS[asked.parser], time.monotonic() + asked.seconds, 0
    for data in mutated(chosen, asked.seed):
        try:
            chosen.read(data)
        except BaseException:
            name = f"{asked.parser}-{hashlib.sha256(data).hexdigest()}"
            (Path(asked.findings) / name).write_bytes(data)
            print(f"{asked.parser}: after {count} mutations of seed {asked.seed} one broke it: {name}")
            raise
        count += 1
        if time.monotonic() > end:
            break
    print(f"{asked.parser}: {count} seeded mutations, no finding")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz_parsers", description=__doc__.splitlines()[0])
    parser.add_argument("parser", choices=("client-spec", "codec", "configuration", "key-set", "plan"))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeded", action="store_true", help="mutations of our own, also where atheris is installed")
    parser.add_argument("--findings", default=".", help="directory for the bytes that broke a parser")
    asked = parser.parse_args()
    if asked.seeded or importlib.util.find_spec("atheris") is None:
        _seeded(asked)
    else:
        _guided(asked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
