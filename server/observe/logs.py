"""Structured logs: one JSON object per line on standard error. Never payloads, key-set ids or upload ids."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

__all__ = ["event", "set_up"]

_LOGGER = logging.getLogger("secateur.server")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line.update(getattr(record, "facts", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up(level: str) -> None:
    """Send the server's log to standard error; only `server.run` and the worker's main call this, libraries never."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    _LOGGER.handlers[:] = [handler]
    _LOGGER.setLevel(level.upper())
    _LOGGER.propagate = False


def event(name: str, *, level: int = logging.INFO, error: BaseException | None = None, **facts: Any) -> None:
    """Log one event with its facts (numbers, names, digests)."""
    _LOGGER.log(level, name, extra={"facts": facts}, exc_info=error)
