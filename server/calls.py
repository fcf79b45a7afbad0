"""One call: who makes it, what crossed the network, how it ended, and who is told."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from .guard import Guard
from .identity.notes import begin_notes, note
from .identity.tenant import Caller
from .observe import logs
from .observe.events import CallEnded, Observer

__all__ = ["Call"]

# Reads that a client repeats and that tell it nothing it could not have before: recorded only when they fail.
_ROUTINE = frozenset(
    {
        "ModelService/ListModels",
        "ModelService/EstimateCost",
        "KeyService/GetUpload",
        "KeyService/UploadChunk",
        "ServerReflection/ServerReflectionInfo",
        "GRPCInferenceService/ServerLive",
        "GRPCInferenceService/ServerReady",
        "GRPCInferenceService/ServerMetadata",
        "GRPCInferenceService/ModelReady",
    }
)
_NAMES = ("model", "model_name", "name")  # fields of a request that may name a model
_REQUEST_IDS = ("request_id", "id")  # fields of a request that may hold its caller's name for it
_DIGEST_CHARS = 12
_UNKNOWN = Caller("")


@dataclass
class Call:
    """What is known of a call while it lasts."""

    method: str  # service and method, as InferenceService/Infer
    observer: Observer
    guard: Guard
    started: float = field(default_factory=time.monotonic)
    caller: Caller = _UNKNOWN  # until the credential has been read
    peer: str = ""
    received_bytes: int = 0
    sent_bytes: int = 0
    notes: dict[str, str] = field(default_factory=dict)

    def identify(self, context: Any) -> Caller:
        """Whose call this is, before a byte of it is read; NotAuthenticated or NotPermitted where it is nobody's."""
        logs.begin()
        self.notes, self.peer = begin_notes(), unquote(str(context.peer()))
        self.caller = self.guard.policy.caller(context)
        logs.add(tenant=self.caller.tenant)
        return self.caller

    async def admit(self) -> None:
        """Refuse the call before its request is read, where it could not be recorded and must be."""
        if self.guard.audit is not None:
            await self.guard.audit.ready()

    def received(self, message: Any, size: int) -> None:
        """A message of the request arrived; the first one tells what the call is about."""
        if not self.received_bytes:
            message = getattr(message, "call", message)  # of a job: the call that it makes
            model = next((getattr(message, n) for n in _NAMES if isinstance(getattr(message, n, None), str)), "")
            digest = getattr(message, "sha256", "")
            note(model=model, key_set=digest[:_DIGEST_CHARS] if isinstance(digest, str) else "")
            ids = (getattr(message, name, "") for name in _REQUEST_IDS)
            logs.add(request=logs.hashed(next((i for i in ids if i and isinstance(i, str)), "")))
        self.received_bytes += size

    async def succeeded(self) -> None:
        """Record a success; where records are required, before the caller learns of it, or else it does not."""
        done = None if self.method in _ROUTINE else self._record("OK")
        if done is not None and self.guard.audit is not None:
            await self.guard.audit.settled(done)

    def failed(self, reason: str, cause: str = "", incident: str = "") -> None:
        """Record a failure: the reason is what the caller was told, the cause what only the operator learns."""
        self._record(reason, cause=cause, incident=incident)
        self.ended(reason)

    def ended(self, reason: str) -> None:
        seconds = time.monotonic() - self.started
        logs.event("call", method=self.method, ms=round(seconds * 1e3, 1), reason=reason, tenant=self.caller.tenant)
        about = (self.method, reason, self.caller.tenant, seconds)
        self.observer(CallEnded(*about, received_bytes=self.received_bytes, sent_bytes=self.sent_bytes))

    def _record(self, outcome: str, **more: str) -> Any:
        if self.guard.audit is None:
            return None
        return self.guard.audit.record(
            self.method,
            tenant=self.caller.tenant,
            subject=self.caller.subject,
            admin=self.caller.admin or None,
            peer=self.peer,
            outcome=outcome,
            received_bytes=self.received_bytes,
            sent_bytes=self.sent_bytes,
            ms=round((time.monotonic() - self.started) * 1e3, 1),
            **self.notes,
            **more,
        )
