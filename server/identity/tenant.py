"""Whose call this is. Set once per call at the boundary, from the credential and never from a message; read where it matters.

Without configured identity everybody is the one tenant ANONYMOUS.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["ANONYMOUS", "Caller", "acting_as", "current_caller"]


@dataclass(frozen=True)
class Caller:
    """A tenant, who speaks for it (the credential's subject), whether it may administer, and its models (none: all)."""

    tenant: str
    subject: str = ""
    admin: bool = False
    models: frozenset[str] | None = None

    def may_use(self, model: str) -> bool:
        """Whether a model exists for this caller: one it may not use is answered like one that is not there."""
        return self.models is None or model in self.models


ANONYMOUS = Caller("anonymous")
_CALLER: ContextVar[Caller] = ContextVar("caller", default=ANONYMOUS)


def current_caller() -> Caller:
    """The caller of the RPC that the current task works for."""
    return _CALLER.get()


@contextmanager
def acting_as(caller: Caller) -> Iterator[None]:
    token = _CALLER.set(caller)
    try:
        yield
    finally:
        with suppress(ValueError):  # a stream that is closed from another task's context has nothing to restore there
            _CALLER.reset(token)
