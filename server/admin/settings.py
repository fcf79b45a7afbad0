"""What an operator can say about administration."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AdminConfig"]


@dataclass(frozen=True)
class AdminConfig:
    """The AdminService, which whoever reaches it may use, unless `identity` asks for credentials of an administrator."""

    address: str = ""  # unix:path (made readable for the server's user only) or a loopback host:port; empty: off
