"""What the key store needs of a database, whichever it is: statements with `?` for values, and transactions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from he_runtime.errors import Reason

from ..errors import ConfigError, ServiceError
from .schema import VERSION

__all__ = ["Driver", "Execute", "Row", "refuse_newer", "store_down"]

Row = tuple[Any, ...]
Execute = Callable[..., list[Row]]  # (statement, *values) -> rows

_RETRY_SECONDS = 2.0


class Driver(Protocol):
    """A database with the current schema. Thread-safe; methods block.

    Raises ServiceError (STORE_UNAVAILABLE) where the database cannot be reached: a transaction that ends so may or may
    not have been done.
    """

    def read(self, statement: str, *values: object) -> list[Row]:
        """Rows of one statement that changes nothing; needs no write lock."""

    def transaction(self) -> AbstractContextManager[Execute]:
        """All or nothing, and one writer at a time in the whole database."""

    def check(self) -> None:
        """Raise unless the database answers and its own check of itself, where it has one, finds nothing."""

    def close(self) -> None: ...


def store_down(what: str, hint: str = "") -> ServiceError:
    """What a caller is told while a database or an object store cannot be reached. Names no address and no cause."""
    return ServiceError(
        f"cannot reach the {what}{hint}: got no answer, need one; try again shortly",
        Reason.STORE_UNAVAILABLE,
        subject="storage",
        retry_after_seconds=_RETRY_SECONDS,
    )


def refuse_newer(where: str, version: int) -> None:
    if version > VERSION:
        raise ConfigError(
            f"cannot use the key store {where}: schema {version}, this build reads at most {VERSION}; try a newer build"
        )
