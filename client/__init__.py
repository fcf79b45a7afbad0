"""The client: makes keys, encrypts, calls the server, decrypts. The server sees none of the secrets or values.

`from client import Client` (or AsyncClient) is the way in; names are loaded on first use, so `import client` pulls in neither an HE
library nor gRPC (and never torch).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .async_client import AsyncClient
    from .client import Client
    from .errors import (
        BatchIncomplete,
        CredentialError,
        DeadlineExceeded,
        KeyStoreError,
        NotAuthenticated,
        NotPermitted,
        PrecisionImpossible,
        RangeWarning,
        ReleaseBudgetSpent,
        ReleaseRefused,
        ServerBusy,
        ServerError,
        ServerUnreachable,
        ServerUntrusted,
    )
    from .jobs import AsyncJob, Job
    from .keyring import StoredKeys
    from .keystore import KeyStore
    from .limits import Limits
    from .prediction import Prediction, Timings
    from .prepare import Prepared
    from .release import Release

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "BatchIncomplete",
    "Client",
    "CredentialError",
    "DeadlineExceeded",
    "Job",
    "KeyStore",
    "KeyStoreError",
    "Limits",
    "NotAuthenticated",
    "NotPermitted",
    "PrecisionImpossible",
    "Prediction",
    "Prepared",
    "RangeWarning",
    "Release",
    "ReleaseBudgetSpent",
    "ReleaseRefused",
    "ServerBusy",
    "ServerError",
    "ServerUnreachable",
    "ServerUntrusted",
    "StoredKeys",
    "Timings",
]

_HOME = {
    "AsyncClient": ".async_client",
    "AsyncJob": ".jobs",
    "BatchIncomplete": ".errors",
    "Client": ".client",
    "CredentialError": ".errors",
    "DeadlineExceeded": ".errors",
    "Job": ".jobs",
    "KeyStore": ".keystore",
    "KeyStoreError": ".errors",
    "Limits": ".limits",
    "NotAuthenticated": ".errors",
    "NotPermitted": ".errors",
    "PrecisionImpossible": ".errors",
    "Prediction": ".prediction",
    "Prepared": ".prepare",
    "RangeWarning": ".errors",
    "Release": ".release",
    "ReleaseBudgetSpent": ".errors",
    "ReleaseRefused": ".errors",
    "ServerBusy": ".errors",
    "ServerError": ".errors",
    "ServerUnreachable": ".errors",
    "ServerUntrusted": ".errors",
    "StoredKeys": ".keyring",
    "Timings": ".prediction",
}


def __getattr__(name: str) -> object:
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module, __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
