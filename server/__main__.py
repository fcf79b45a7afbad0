"""`python -m server --config FILE`: serve until told to stop; prints {"address": ...} once ready."""

from __future__ import annotations

import argparse
import json
import sys

from he_runtime.errors import SecateurError

from .config import load_config
from .serving import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m server", description="Serve compressed models over gRPC.")
    parser.add_argument("--config", help="TOML file; without it the defaults and the environment apply")
    try:
        config = load_config(parser.parse_args().config)
        run(config, lambda address: print(json.dumps({"address": address}), flush=True))
    except SecateurError as error:
        print(error.message, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
