"""The key store: each tenant's evaluation keys by content, behind unguessable ids.

Committing an upload: the synced part file is made whole and checked (see `assembly`), brought to its place among the blobs, and only then
recorded together with its capability in one database transaction. A crash between the two leaves a blob that nobody
records, which is made a part of its upload again, or else removed. An id serves the tenant that it was given to; an id that is
unknown, expired, evicted, deleted or another tenant's gets one and the same answer.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from he_runtime.errors import Reason
from protos.native import KeySetInfo, KeySetListing, MissingPieces, UploadInfo, UploadOffer

from ..errors import ServiceError
from ..identity.tenant import current_caller
from ..observe.logs import event
from . import durable
from .assembly import Assembly
from .blobs import blob_name
from .db import UploadRow
from .manifest import Manifest, offered_pieces
from .opening import Opened, open_parts_of_store
from .settings import KeysConfig
from .shelf import OUTAGES, Shelf, StoredKeys, hash_token, new_token
from .uploads import Uploads, needing_part, unknown_upload

__all__ = ["KeyStore", "ReadyUpload", "StoredKeys"]

_GOOD_SECONDS, _BAD_SECONDS = 2.0, 0.9  # for which a look at the stores holds
_KEEPING_SECONDS = 30.0  # between two rounds of recording uses and forgetting what expired
_SWEEP_ROUNDS = 120  # one sweep for orphans an hour


@dataclass(frozen=True)
class ReadyUpload:
    """An upload whose bytes are all there and have the announced digest, not yet visible to anyone."""

    row: UploadRow
    path: Path

    @property
    def name(self) -> str:
        """What workers cache the keys by: see StoredKeys."""
        return blob_name(self.row.tenant, self.row.sha256)


class KeyStore:
    """Key sets under `directory`, or where `config` says. Methods block; call them from a thread. Thread-safe.

    Every method acts for the tenant of the current caller. `on_step` is called with a name before each durable step;
    tests crash there. Besides OSError and sqlite3.Error of a full disk, methods raise ServiceError (STORE_UNAVAILABLE)
    where a database or an object store does not answer; nothing is half-done then, and the caller may try again.
    """

    def __init__(self, directory: Path, config: KeysConfig, on_step: Callable[[str], None] = lambda step: None) -> None:
        opened = open_parts_of_store(directory, config)
        self._opened: Opened = opened
        self._directory = directory
        self._config = config
        self._on_step = on_step
        self._lock = threading.RLock()  # one commit, eviction or deletion at a time
        self.db, self._blobs = opened.db, opened.blobs
        self._shelf = Shelf(opened.db, opened.blobs, config, self._lock, on_step)
        self._uploads = Uploads(directory / "parts", opened.place, opened.db, config, on_step, self._restore)
        self._assembly = Assembly(opened.db, opened.blobs, self._shelf, self._uploads, on_step)
        self._known_problems: list[str] = []
        self._looked = -_GOOD_SECONDS
        self._swept = False
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="secateur-keys", daemon=True)
        try:
            self._start()
        except BaseException:
            opened.close()
            raise
        self._keeper.start()

    def _start(self) -> None:
        """Undo half-done commits, then remove what nobody records. An object store that is down is swept later."""
        for row in self.db.uploads():
            if row.place == self._opened.place and not self._uploads.path(row.id_hash).exists():
                self._restore(row)
        self._uploads.sweep()
        try:
            self._shelf.sweep()
            self._swept = True
        except ServiceError as error:
            event("cannot sweep the key store", level=logging.WARNING, cause=error.message)

    def _restore(self, row: UploadRow) -> None:
        """Give an upload its part back where a commit moved it and did not record that."""
        if self.db.blob(row.tenant, row.sha256) is None:
            self._blobs.restore(self._uploads.path(row.id_hash), blob_name(row.tenant, row.sha256))

    def _keep(self) -> None:
        rounds = 0
        while not self._closing.wait(_KEEPING_SECONDS):
            rounds += 1
            try:
                self.keep(sweep=not self._swept or rounds % _SWEEP_ROUNDS == 0)
            except OUTAGES as error:
                event("cannot keep the key store", level=logging.WARNING, cause=type(error).__name__)

    def keep(self, sweep: bool = True) -> None:
        """Record uses, delete what expired, and on request sweep for orphans: what a thread does every half minute."""
        self._shelf.expire()
        self._uploads.expire()
        if sweep:
            self._shelf.sweep()
            self._swept = True

    def close(self) -> None:
        """Make durable what can be, and let go of the directory."""
        self._closing.set()
        self._keeper.join()
        try:
            self._uploads.close()
            self._shelf.flush()
        finally:
            self._opened.close()

    def healthy(self) -> bool:
        """Whether database, object store and disk all answer and have room. Cheap enough to ask twice a second: the
        answer is some seconds old, one at most while it is no. What changed is logged."""
        age = _GOOD_SECONDS if not self._known_problems else _BAD_SECONDS
        if time.monotonic() - self._looked > age:
            known, self._known_problems = self._known_problems, self.problems()
            self._looked = time.monotonic()
            if bool(known) != bool(self._known_problems):
                event("key store", level=logging.WARNING, problems=self._known_problems)
        return not self._known_problems

    def problems(self) -> list[str]:
        """What keeps the store from storing or finding keys, a sentence each; for the operator, not for callers."""
        found = []
        for what, check in (
            ("database", self.db.driver.check),
            ("blobs", self._blobs.check),
            ("disk", lambda: durable.probe(self._directory / "probe", self._config.min_free_bytes)),
        ):
            try:
                check()
            except OUTAGES as error:
                found.append(f"keys: {what}: {error}")
        return found

    # Uploading

    def create(self, offer: UploadOffer) -> UploadInfo | KeySetInfo | MissingPieces:
        """Start an upload, or return a new capability where this tenant stored these very bytes for these parameters, or
        what cannot be taken from where the offer assumes it.

        Raises BYTES_MALFORMED for a manifest that is none, LIMIT_EXCEEDED before a byte moves, KEY_PARAMETERS_DIFFER for
        bytes stored under other parameters.
        """
        tenant, token, now = current_caller().tenant, new_token(), time.time()
        pieces = offered_pieces(offer)
        with self._lock:
            blob = (self.db.blob_of if pieces else self.db.blob)(tenant, offer.sha256)
            if blob is not None and blob.total_bytes == offer.total_bytes:
                _require_same_parameters(blob.params_digest, offer.params_digest)
                spec = offer.client_spec_digest
                if self.db.add_key_set(hash_token(token), tenant, blob.sha256, spec, now):
                    return self._shelf.info(token)
            self._require_room(offer.total_bytes)
            held = self.db.held(tenant, offer.params_digest, pieces)
            manifest = Manifest(pieces, frozenset(n for n, piece in enumerate(pieces) if piece.sha256 in held))
            lacking = tuple(n for n, assumed in enumerate(offer.assumed) if assumed and n not in manifest.held)
            if lacking:
                return MissingPieces(lacking)
            about = (offer.sha256, offer.total_bytes, offer.params_digest, offer.client_spec_digest)
            row = UploadRow(hash_token(token), tenant, *about, self._opened.place, 0, now, manifest.held_bytes)
            self._uploads.begin(row, manifest if pieces else None)
            return UploadInfo(token, row.sent_bytes, 0, manifest.missing)

    def _require_room(self, total_bytes: int) -> None:
        most = min(self._config.budget_bytes, self._config.tenant_budget_bytes)
        if total_bytes > most:
            raise ServiceError(
                f"cannot store the keys: got {total_bytes} bytes, need at most {most} on this server; try its operator",
                Reason.LIMIT_EXCEEDED,
                subject="total_bytes",
            )

    def append(self, upload_id: str, offset: int, data: bytes) -> None:
        """Add a chunk at the end of an upload; see Uploads.append."""
        self._uploads.append(current_caller().tenant, hash_token(upload_id), offset, data)

    def progress(self, upload_id: str) -> UploadInfo:
        """Make what was received durable, and say how much that is."""
        row, offset = self._uploads.sync(current_caller().tenant, hash_token(upload_id))
        return UploadInfo(upload_id, row.sent_bytes, offset)

    def upload(self, upload_id: str) -> UploadInfo:
        """The same, and which pieces are to be sent."""
        found, manifest = self.progress(upload_id), self.db.manifest(hash_token(upload_id))
        return found if manifest is None else replace(found, missing=manifest.missing)

    def complete(self, upload_id: str) -> ReadyUpload:
        """The upload, checked to be whole and of the announced digests: what `commit` takes.

        Raises UPLOAD_INCOMPLETE and keeps it, or what Assembly.whole raises and drops it.
        """
        row, offset = self._uploads.sync(current_caller().tenant, hash_token(upload_id))
        if offset != row.sent_bytes:
            raise ServiceError(
                f"cannot commit the upload: got {offset} bytes, need {row.sent_bytes}; try resuming from there",
                Reason.UPLOAD_INCOMPLETE,
                subject="upload_id",
                metadata={"committed_offset": str(offset)},
            )
        return ReadyUpload(self._assembly.whole(row), self._uploads.path(row.id_hash))

    def discard(self, ready: ReadyUpload) -> None:
        """Forget a complete upload whose content turned out to be unusable."""
        self._uploads.drop(ready.row.id_hash)

    def commit(self, ready: ReadyUpload) -> KeySetInfo:
        """Make a complete upload a key set. All or nothing: see the module's description."""
        row, token = ready.row, new_token()
        with self._uploads.released(row.id_hash):
            if self.db.blob(row.tenant, row.sha256) is None:
                with needing_part():
                    self._blobs.send(ready.path, ready.name)  # may take long, so nobody else waits for it
            with self._lock:
                stored = self.db.blob(row.tenant, row.sha256)
                if stored is not None:
                    _require_same_parameters(stored.params_digest, row.params_digest)
                evicted = self._shelf.evictions(row.tenant, row.sha256, row.total_bytes)
                if stored is None:
                    self._place(ready, hash_token(token), evicted)
                else:
                    self._record(row, hash_token(token), evicted)
                self._on_step("recorded")
                durable.remove(ready.path)
                self._shelf.remove(evicted)
        return self._shelf.info(token)

    def _place(self, ready: ReadyUpload, set_hash: str, evicted: list[tuple[str, str]]) -> None:
        """Bring a part to its place and record it; what is not recorded is brought back."""
        self._on_step("before-move")
        with needing_part():
            self._blobs.place(ready.path, ready.name)
        self._on_step("moved")
        try:
            self._record(ready.row, set_hash, evicted)
        except BaseException:
            with contextlib.suppress(*OUTAGES):  # whoever asks for this upload next does it then
                self._restore(ready.row)
            raise

    def _record(self, row: UploadRow, set_hash: str, evicted: list[tuple[str, str]]) -> None:
        if not self.db.commit_upload(row, set_hash, evicted, time.time()):
            raise unknown_upload()  # dropped, or committed by another call, since it was complete

    def tell_of_gone(self, listener: Callable[[str], object]) -> None:
        """Call `listener`, in the thread where it happens, with the name of each key set that is deleted, expired or
        evicted, once its bytes are gone."""
        self._shelf.on_gone = listener

    # Using: see Shelf

    def find(self, key_set_id: str) -> StoredKeys:
        return self._shelf.find(key_set_id)

    def info(self, key_set_id: str, handle: str = "") -> KeySetInfo:
        return self._shelf.info(key_set_id, handle)

    def touch(self, key_set_id: str, handle: str = "") -> KeySetInfo:
        return self._shelf.touch(key_set_id, handle)

    def listing(self, page_size: int = 0, page_token: str = "") -> KeySetListing:
        return self._shelf.listing(page_size, page_token)

    def delete(self, key_set_id: str, handle: str = "") -> None:
        """Forget an id, and with the last id of its bytes those bytes and every upload of the same."""
        gone = self._shelf.delete(key_set_id, handle)
        if gone is not None:
            self._uploads.drop_of(*gone)


def _require_same_parameters(stored: str, offered: str) -> None:
    if stored != offered:
        raise ServiceError(
            f"cannot use these keys for parameters {offered[:12]}: got bytes that are stored for {stored[:12]}; "
            "try making keys from the current client spec",
            Reason.KEY_PARAMETERS_DIFFER,
            subject="params_digest",
        )
