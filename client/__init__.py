"""The client: makes keys, encrypts, calls the server, decrypts. The server sees none of the secrets or values.

`from client import Client` is the way in; names are loaded on first use, so `import client` pulls in neither an HE
library nor gRPC (and never torch).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import Client
    from .errors import (
        CredentialError,
        KeyStoreError,
        NotAuthenticated,
        NotPermitted,
        PrecisionImpossible,
        RangeWarning,
        ReleaseBudgetSpent,
        ReleaseRefused,
        ServerError,
        ServerUnreachable,
        ServerUntrusted,
    )
    from .keystore import KeyStore
    from .limits import Limits
    from .prediction import Prediction, Timings
    from .prepare import Prepared
    from .release import Release

__all__ = [
    "Client",
    "CredentialError",
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
    "ServerError",
    "ServerUnreachable",
    "ServerUntrusted",
    "Timings",
]

_HOME = {
    "Client": ".client",
    "CredentialError": ".errors",
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
    "ServerError": ".errors",
    "ServerUnreachable": ".errors",
    "ServerUntrusted": ".errors",
    "Timings": ".prediction",
}


def __getattr__(name: str) -> object:
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module, __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
