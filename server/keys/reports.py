"""What the key service tells its observer: bytes that arrived, and what the store holds."""

from __future__ import annotations

import asyncio
import sqlite3

from ..errors import ServiceError
from ..observe.events import BytesUploaded, Observer, StoreChanged
from .store import KeyStore

__all__ = ["KeyReports"]

_LOOK_SECONDS = 30.0  # key sets also go by themselves, when they expire


class KeyReports:
    """Belongs to the event loop; asks the store in a thread."""

    def __init__(self, store: KeyStore, observer: Observer) -> None:
        self._store = store
        self._tell = observer

    def uploaded(self, count: int) -> None:
        self._tell(BytesUploaded(count))

    async def changed(self) -> None:
        """A key set was committed or deleted. A store that does not answer is not asked again for this."""
        try:
            total = await asyncio.to_thread(lambda: sum(blob.total_bytes for blob in self._store.db.blobs()))
        except (ServiceError, OSError, sqlite3.Error):
            return  # the store's own probe tells of it
        self._tell(StoreChanged(total))

    async def watch(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            await self.changed()
            await asyncio.sleep(_LOOK_SECONDS)
