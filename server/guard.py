"""Who may call a server, and where it is written down: what the boundary asks, opened and closed with the server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from .config import ServerConfig
from .errors import ConfigError
from .identity.audit import AuditLog
from .identity.policy import Policy
from .identity.problems import identity_problems
from .identity.settings import IdentityConfig, JwtConfig

__all__ = ["OPEN", "Guard"]


@dataclass(frozen=True)
class Guard:
    """The policy that makes callers of credentials, and the audit log (none: nothing is recorded)."""

    policy: Policy
    audit: AuditLog | None = None

    @classmethod
    async def open(cls, config: ServerConfig) -> Guard:
        """By a configuration; ConfigError for settings that contradict each other or leave open what they seem to close."""
        for problem in identity_problems(config):
            raise ConfigError(problem)
        policy = Policy(config.identity, config.jwt)
        if not config.audit.enabled:
            return cls(policy)
        directory = config.audit.directory or config.state / "audit"
        audit = await asyncio.to_thread(AuditLog, directory, config.audit)
        audit.record("server.started", identity=config.identity.mode, tls=config.tls.enabled, address=config.address)
        return cls(policy, audit)

    async def close(self) -> None:
        if self.audit is not None:
            self.audit.record("server.stopped")
            await asyncio.to_thread(self.audit.close)


OPEN = Guard(Policy(IdentityConfig(), JwtConfig()))  # everybody, unrecorded
