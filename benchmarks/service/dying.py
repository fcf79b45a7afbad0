"""A server that kills itself at one durable step of the key store: `python -m benchmarks.service.dying CONFIG STEP`."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from server import serving
from server.config import load_config
from server.keys.store import KeyStore


def main(config_file: str, step: str) -> None:
    def die(at: str) -> None:
        if at == step:
            os.kill(os.getpid(), signal.SIGKILL)

    constructor: Any = KeyStore.__init__
    constructor.__defaults__ = (die,)  # on_step, which nobody else gives
    serving.run(load_config(config_file), lambda address: print(json.dumps({"address": address}), flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
