"""Opening what a key store consists of, as its configuration says: a directory, a database, and a place for blobs."""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..identity.tenant import ANONYMOUS
from . import durable
from .blobs import Blobs, FileBlobs, blob_name
from .db import KeyDb
from .settings import KeysConfig
from .sql import Driver
from .sqlite import Sqlite

__all__ = ["Opened", "open_parts_of_store"]

_LOCAL = "local"  # the one server of an embedded database


@dataclass(frozen=True)
class Opened:
    """A locked directory, the database, the blobs, and the name under which this server's uploads are recorded."""

    db: KeyDb
    blobs: Blobs
    place: str
    owner: int

    def close(self) -> None:
        """Also where one of them cannot be closed."""
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, self.owner)
            stack.callback(self.db.driver.close)
            stack.callback(self.blobs.close)


def open_parts_of_store(directory: Path, config: KeysConfig) -> Opened:
    """Raises ConfigError for a directory in use, a damaged or newer database, and a missing library; OSError for the disk."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = durable.own(directory / "lock")  # another server's sweep would remove our files
    driver: Driver | None = None
    try:
        driver = _open_database(directory, config)
        db = KeyDb(driver)
        place = _place(directory) if config.database else _LOCAL
        blobs = _open_blobs(directory, config, db, place)
        db.adopt_uploads(place)
    except BaseException:
        if driver is not None:
            driver.close()
        os.close(owner)
        raise
    return Opened(db, blobs, place, owner)


def _open_database(directory: Path, config: KeysConfig) -> Driver:
    if not config.database:
        return Sqlite(directory / "keys.sqlite3")
    from .postgres import Postgres

    return Postgres(config.database)


def _open_blobs(directory: Path, config: KeysConfig, db: KeyDb, place: str) -> Blobs:
    if config.bucket:
        from .s3 import S3Blobs

        return S3Blobs(config, directory / "cache")
    if config.database and not db.claim_files(place):
        raise ConfigError(
            "cannot use keys.database: the key sets that it records are files of another server; need keys.bucket where "
            "several servers share a database"
        )
    files = FileBlobs(directory / "blobs")
    for blob in db.blobs():
        name = blob_name(*blob.at)
        if blob.tenant == ANONYMOUS.tenant and not files.exists(name):
            files.adopt(blob.sha256, name)
    return files


def _place(directory: Path) -> str:
    """A name that this state directory keeps, for a database that several servers share."""
    path = directory / "place"
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_text(secrets.token_hex(8))
        durable.move(part, path)
    return path.read_text()
