"""The audit log: who did what, when, from where, with what outcome. No payloads, no capabilities, no tokens.

Records go through a bounded queue to one thread that writes them, so that a slow disk holds nobody up. What the disk does
not take is lost and counted, and the count is the next record that it does take; with `audit.required` a call whose
record cannot be written is refused instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from he_runtime.errors import Reason

from ..errors import ServiceError
from ..observe.logs import event
from .audit_files import AuditFiles
from .settings import AuditConfig

__all__ = ["AuditLog", "unrecorded"]

_BATCH = 256
_RETRY_SECONDS = 10.0
_STOP_SECONDS = 5.0
_Item = tuple[dict[str, Any], "Future[None]"]


class AuditLog:
    """The log of one server in one directory; ConfigError when another server writes there."""

    def __init__(self, directory: Path, config: AuditConfig) -> None:
        self.required = config.required
        self._queue: queue.Queue[_Item | None] = queue.Queue(config.max_pending)
        self._lost = 0  # that the disk or the queue did not take; guarded by the lock, as the two below
        self._refused = 0  # not recorded one by one
        self._allowance = self._rate = config.max_refusals_per_second
        self._refilled = time.monotonic()
        self._lock = threading.Lock()
        self._files = AuditFiles(directory, config)
        self._failing = False
        self._thread = threading.Thread(target=self._write_all, name="secateur-audit", daemon=True)
        self._thread.start()

    def record(self, action: str, **facts: Any) -> Future[None]:
        """Hand over one record; the future is done when it is written, and fails when it cannot be."""
        done: Future[None] = Future()
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        record = {"time": stamp, "action": action, **{k: v for k, v in facts.items() if v not in ("", None)}}
        if facts.get("outcome") == Reason.UNAUTHENTICATED.value and not self._may_record_refusal():
            done.set_result(None)
            return done
        try:
            self._queue.put_nowait((record, done))
        except queue.Full:
            with self._lock:
                self._lost += 1
            done.set_exception(OSError("the audit queue is full"))
        return done

    def _may_record_refusal(self) -> bool:
        with self._lock:
            now = time.monotonic()
            self._allowance = min(self._rate, self._allowance + (now - self._refilled) * self._rate)
            self._refilled = now
            if self._allowance < 1.0:
                self._refused += 1
                return False
            self._allowance -= 1.0
            return True

    async def ready(self) -> None:
        """Refuse a call before it costs anything, while records are required and cannot be written."""
        if self.required and self._failing:
            await self.settled(self.record("audit.tried"))

    async def settled(self, done: Future[None]) -> None:
        """Where records are required: wait until one is written, and refuse the call when it cannot be."""
        if self.required:
            try:
                await asyncio.wrap_future(done)
            except OSError:
                raise unrecorded() from None

    def close(self) -> None:
        """Write what waits, then let go of the directory."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_STOP_SECONDS)
        self._thread.join(_STOP_SECONDS)
        self._files.close()

    def _write_all(self) -> None:
        going = True
        while going:
            batch = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < _BATCH:
                    batch.append(self._queue.get_nowait())
            going = None not in batch
            items = [item for item in batch if item is not None]
            if items:
                self._write(items)

    def _write(self, items: list[_Item]) -> None:
        with self._lock:
            lost, self._lost = self._lost, 0
            refused, self._refused = self._refused, 0
        # A caller who has stopped waiting is recorded like any other, but has no future any more.
        waiting = [done for _, done in items if done.set_running_or_notify_cancel()]
        stamp = items[0][0]["time"]
        counts = {"audit.lost": lost, "audit.refused": refused}
        records: list[Mapping[str, Any]] = [
            {"time": stamp, "action": action, "records": count} for action, count in counts.items() if count
        ]
        try:
            self._files.append([*records, *(record for record, _ in items)])
        except Exception as error:
            self._has_failed(error, lost + refused + len(items))
            for done in waiting:
                done.set_exception(OSError("the audit log cannot be written"))
            return
        self._failing = False
        for done in waiting:
            done.set_result(None)

    def _has_failed(self, error: Exception, lost: int) -> None:
        if not self._failing:
            event("audit log not written", level=logging.ERROR, cause=str(error))
        self._failing = True
        with self._lock:
            self._lost += lost


def unrecorded() -> ServiceError:
    """What a caller is told whose call cannot be recorded although it must be."""
    return ServiceError(
        "cannot serve this call: got no place for its audit record, need one on this server; try again later, or ask the "
        "server's operator",
        Reason.SERVER_BUSY,
        subject="audit",
        retry_after_seconds=_RETRY_SECONDS,
    )
