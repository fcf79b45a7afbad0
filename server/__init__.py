"""The server: a grpc.aio front door that never parses HE bytes, worker processes that do, and a durable key store.

    from server import load_config, run, start

Attributes load on first use, because every worker process imports this package too and must not load gRPC.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checks import check
    from .config import ServerConfig, load_config
    from .identity.tls import make_self_signed
    from .running import RunningServer, start, start_subprocess
    from .serving import run

__all__ = [
    "RunningServer",
    "ServerConfig",
    "check",
    "load_config",
    "make_self_signed",
    "run",
    "start",
    "start_subprocess",
]

_HOMES = {
    "RunningServer": ".running",
    "ServerConfig": ".config",
    "check": ".checks",
    "load_config": ".config",
    "make_self_signed": ".identity.tls",
    "run": ".serving",
    "start": ".running",
    "start_subprocess": ".running",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
