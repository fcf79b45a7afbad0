"""A key set on disk between its making and its commitment by the server, so that an upload can be resumed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from he_runtime.params import CkksParams
from he_runtime.ring import KeySetSpec
from he_runtime.wire import KeySetWriter

from ._files import storing, write_atomic
from .keystore import KeyEntry, key_list_digest

if TYPE_CHECKING:
    from he_runtime.backends.tenseal_secret import SecretKey

__all__ = ["Spool", "spool_keys"]


@dataclass(frozen=True)
class Spool:
    """A complete key set as a file, and beside it a note of its digest and of the upload that it is part of."""

    path: Path
    key_list: str
    sha256: str
    total_bytes: int

    @property
    def _note(self) -> Path:
        return self.path.with_suffix(".json")

    def upload_id(self) -> str | None:
        """The server's name of the upload under way, if there is one."""
        found = _read(self._note).get("upload_id")
        return found if isinstance(found, str) else None

    def remember_upload(self, upload_id: str | None) -> None:
        record = {"key_list": self.key_list, "sha256": self.sha256, "upload_id": upload_id}
        write_atomic(self._note, json.dumps(record).encode())

    def drop(self) -> None:
        self._note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def spool_keys(entry: KeyEntry, secret: SecretKey, keys: KeySetSpec) -> Spool:
    """The key set of `keys` on disk: an intact earlier one whose upload was cut, or freshly made, one key in memory."""
    path, wanted = entry.path / "pending.keys", key_list_digest(entry.params, keys)
    note = _read(path.with_suffix(".json"))
    if path.exists() and note.get("key_list") == wanted and note.get("sha256") == _sha256(path):
        return Spool(path, wanted, note["sha256"], path.stat().st_size)
    path.with_suffix(".json").unlink(missing_ok=True)
    _write(path, entry.params, secret, keys)
    spool = Spool(path, wanted, _sha256(path), path.stat().st_size)
    spool.remember_upload(None)
    return spool


def _write(path: Path, params: CkksParams, secret: SecretKey, keys: KeySetSpec) -> None:
    try:
        with storing(path):
            path.touch(mode=0o600)
            with path.open("wb") as file, KeySetWriter(file, params, keys) as writer:
                for record in secret.make_keys(keys):
                    writer.write(record)
    except BaseException:
        path.unlink(missing_ok=True)  # a part of a key set is of no use, and may be what fills the disk
        raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(note: Path) -> dict[str, Any]:
    """The note, {} when absent or damaged: then the keys are simply made again."""
    try:
        record = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
