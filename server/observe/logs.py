"""Structured logs: one JSON object per line on standard error. Never payloads, key-set ids, upload ids or credentials.

A line has the time, the level and the event with its facts; within a call also the caller's tenant, the call's trace and
a digest of its request id. Whatever looks like a capability or a credential is cut out of every line before it is
written: the text of an exception may hold what no code here would log.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["add", "begin", "event", "hashed", "of_call", "scrubbed", "set_up", "within"]

_LOGGER = logging.getLogger("secateur.server")
_FOREIGN = ("asyncio", "grpc", "opentelemetry")  # loggers of libraries, whose lines become ours from warnings on
_CONTEXT: ContextVar[dict[str, Any] | None] = ContextVar("log_context", default=None)
_OF_CALL = ("tenant", "trace", "request")
_CUT = "[cut]"
_HASH_CHARS = 12
_MAX_TEXT_CHARS = 16_000  # of a traceback; most are a tenth of it
_SECRETS = re.compile(
    r"(?<![0-9A-Za-z])[0-9a-f]{32}(?![0-9A-Za-z])"  # capabilities: ids of key sets, uploads and jobs
    r"|(?<![0-9A-Za-z])eyJ[\w-]+\.[\w-]+\.[\w-]*"  # JSON web tokens
    r"|(?<=://)[^/\s:@\"]*:[^/\s@\"]+(?=@)"  # user and password of a URL
    r"|(?<=password=)\S+|(?<=password: )\S+|(?<=Bearer )\S+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
    re.DOTALL,
)


def scrubbed(text: str) -> str:
    """`text` without what looks like a capability or a credential. Digests of 64 digits stay."""
    return _SECRETS.sub(_CUT, text)


def hashed(text: str) -> str:
    """A short sha256 of an id that a caller chose: whoever knows the id finds its lines, and nobody finds the id."""
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_CHARS] if text else ""


def _plain(value: Any) -> Any:
    """What JSON can hold of a fact, scrubbed."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return {scrubbed(str(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    return scrubbed(str(value))


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage() if record.name == _LOGGER.name else scrubbed(record.getMessage()),
        }
        if record.name != _LOGGER.name:
            line["logger"] = record.name
        for name, value in getattr(record, "facts", {}).items():
            line[name] = value if name == "trace" else _plain(value)  # a trace's id looks like a capability and is none
        if record.exc_info:
            line["traceback"] = scrubbed(self.formatException(record.exc_info)[-_MAX_TEXT_CHARS:])
        return json.dumps(line)


def set_up(level: str) -> None:
    """Send the server's log to standard error; only `server.run` and the worker's main call this, libraries never."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    for logger in (_LOGGER, *map(logging.getLogger, _FOREIGN)):
        logger.handlers[:] = [handler]
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    _LOGGER.setLevel(level.upper())


def begin(**facts: Any) -> None:
    """From now on every line of this task, and of tasks that it makes, has these facts and those that `add` adds."""
    _CONTEXT.set({**(_CONTEXT.get() or {}), **facts})


def add(**facts: Any) -> None:
    """Add facts to the lines of the call that the current task works for; nothing outside of one."""
    context = _CONTEXT.get()
    if context is not None:
        context.update(facts)


def of_call() -> dict[str, str]:
    """Whose call the current task works for, as its lines say it: what a worker is told with the job."""
    known = _CONTEXT.get() or {}
    return {name: str(known[name]) for name in _OF_CALL if known.get(name)}


@contextmanager
def within(**facts: Any) -> Iterator[None]:
    """Lines of the block have these facts, and no others."""
    token = _CONTEXT.set(facts)
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def event(name: str, *, level: int = logging.INFO, error: BaseException | None = None, **facts: Any) -> None:
    """Log one event with its facts (numbers, names, digests)."""
    known = {key: value for key, value in (_CONTEXT.get() or {}).items() if value}
    _LOGGER.log(level, name, extra={"facts": {**known, **facts}}, exc_info=error)
