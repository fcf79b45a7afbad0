"""Secret keys on disk: one per (server, parameter set), private to the user, never shared between servers.

    <home>/servers/<server id>/server.json                        which address this is, for a person
    <home>/servers/<server id>/<parameter digest>/secret.key      0600; the only secret of the project
                                                 /entry.json      parameters and creation time, for a person
                                                 /key_sets.json   key list digest -> key_set_id (a capability: private)
                                                 /records.json    which keys the server was sent (record_index.py)
                                                 /pending.keys    a key set under upload, with pending.json; a cut
                                                                  upload is resumed from it, by this client or the next
                                                 /jobs/           what results of jobs are decrypted with (job_store.py)
                                                 /releases.json   how many decryptions were released (release_ledger.py)
                                                 /lock

Two servers never see material of one secret, so they cannot combine what they know, and deleting an entry revokes
everything that one server holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from he_runtime.errors import SecateurError
from he_runtime.params import CkksParams
from he_runtime.ring import KeySetSpec

from ._files import locked, private_directory, storing, write_atomic
from .errors import KeyStoreError
from .release_ledger import start_ledger

if TYPE_CHECKING:
    from he_runtime.backends.tenseal_secret import SecretKey

__all__ = [
    "EntryInfo",
    "KeyEntry",
    "KeyStore",
    "ServerIdentity",
    "forget_key_set",
    "key_list_digest",
    "key_set_ids",
    "locked_entry",
]

HOME_VARIABLE = "SECATEUR_HOME"
_LOCK_SECONDS = 600.0  # an upload of a large key set holds the lock


@dataclass(frozen=True)
class ServerIdentity:
    """Whom a secret belongs to: the address, and the fingerprint of the certificate it is pinned to ("" if none)."""

    address: str
    fingerprint: str = ""

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.address}\n{self.fingerprint}".encode()).hexdigest()


@dataclass(frozen=True)
class EntryInfo:
    """One stored secret, described without touching it. `created` is seconds since the epoch."""

    address: str
    fingerprint: str
    params_name: str
    params_digest: str
    created: float
    key_sets: int
    path: Path


def key_list_digest(params: CkksParams, keys: KeySetSpec) -> str:
    """What an uploaded key set is remembered by: the parameters, the gadget and the exact list of keys."""
    record = [params.digest, keys.gadget, [[r.element, r.level] for r in keys.requests]]
    return hashlib.sha256(json.dumps(record, separators=(",", ":")).encode()).hexdigest()


def default_home() -> Path:
    """SECATEUR_HOME, or the user's data directory for this project."""
    stated = os.environ.get(HOME_VARIABLE)
    if stated:
        return Path(stated).expanduser()
    from platformdirs import user_data_path

    return user_data_path("secateur", appauthor=False)


class KeyStore:
    """The directory of all secrets of one user; made private on first use."""

    def __init__(self, home: Path | str | None = None) -> None:
        self.home = Path(home).expanduser() if home is not None else default_home()

    def entry(self, server: ServerIdentity, params: CkksParams) -> KeyEntry:
        """The entry of one server and parameter set; its directory is made if absent, its secret is not."""
        private_directory(self.home, readable=True)  # what matters is private one level below
        private_directory(self.home / "servers")
        directory = private_directory(self.server(server))
        write_atomic(directory / "server.json", _json({"address": server.address, "fingerprint": server.fingerprint}))
        return KeyEntry(private_directory(directory / params.digest), params)

    def server(self, server: ServerIdentity) -> Path:
        """Where the entries of one server are, whether there are any or not."""
        return self.home / "servers" / server.digest[:32]

    def entries(self) -> list[EntryInfo]:
        """Every stored secret, by address and parameter digest."""
        found = []
        for secret in self.home.glob("servers/*/*/secret.key"):
            directory = secret.parent
            server, entry = _read_json(directory.parent / "server.json"), _read_json(directory / "entry.json")
            found.append(
                EntryInfo(
                    address=str(server.get("address", "?")),
                    fingerprint=str(server.get("fingerprint", "")),
                    params_name=str(entry.get("params_name", "?")),
                    params_digest=directory.name,
                    created=float(entry.get("created", secret.stat().st_mtime)),
                    key_sets=len(_read_json(directory / "key_sets.json")),
                    path=directory,
                )
            )
        return sorted(found, key=lambda info: (info.address, info.fingerprint, info.params_digest))

    def delete(self, info: EntryInfo) -> None:
        """Destroy one secret and what depends on it; the key sets that its server holds become useless."""
        if info.path not in {e.path for e in self.entries()}:
            raise KeyStoreError(f"cannot delete {info.path}: it is not an entry of {self.home}; try KeyStore.entries()")
        with locked(info.path / "lock", _LOCK_SECONDS):
            shutil.rmtree(info.path)


class KeyEntry:
    """The secret of one (server, parameter set) and what this client knows of its uploaded key sets."""

    def __init__(self, path: Path, params: CkksParams) -> None:
        self.path = path
        self.params = params

    def __repr__(self) -> str:
        return f"KeyEntry({str(self.path)!r}, {self.params.name})"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Exclusive use of this entry among processes: making the secret, and uploading."""
        with locked_entry(self.path):
            yield

    def existing_secret(self) -> SecretKey | None:
        """The secret key, None where there is none; KeyStoreError where it cannot be used."""
        from he_runtime.backends.tenseal_secret import SecretKey

        file = self.path / "secret.key"
        if not file.exists():
            return None
        try:
            return SecretKey.load(file, self.params)
        except SecateurError as error:
            raise KeyStoreError(
                f"cannot load the secret key in {self.path}: {error.message}; try deleting the entry, and a new "
                "key will be made and uploaded",
                error.reason,
            ) from error

    def secret(self) -> SecretKey:
        """The secret key, generated on first use. Call within `lock()`."""
        from he_runtime.backends.tenseal_secret import SecretKey

        found = self.existing_secret()
        if found is not None:
            return found
        # What an earlier secret uploaded is useless with a new one: forget it before the new one exists.
        for stale in ("key_sets.json", "pending.json", "pending.keys", "records.json"):
            (self.path / stale).unlink(missing_ok=True)
        shutil.rmtree(self.path / "jobs", ignore_errors=True)
        secret = SecretKey.generate(self.params)
        info = {"params_name": self.params.name, "params": self.params.to_json(), "created": time.time()}
        write_atomic(self.path / "entry.json", _json(info))
        with storing(self.path / "secret.key"):
            secret.save(self.path / "secret.key")
        start_ledger(self.path)
        return secret

    def key_set_id(self, keys: KeySetSpec) -> str | None:
        """The server's name for this key list, if it was uploaded."""
        known = _read_json(self.path / "key_sets.json").get(key_list_digest(self.params, keys))
        return known if isinstance(known, str) else None

    def remember(self, keys: KeySetSpec, key_set_id: str) -> None:
        known = _read_json(self.path / "key_sets.json")
        write_atomic(self.path / "key_sets.json", _json({**known, key_list_digest(self.params, keys): key_set_id}))

    def forget(self, keys: KeySetSpec, key_set_id: str) -> None:
        """Drop a key set id that the server no longer knows, unless another process has already replaced it."""
        with self.lock():
            if _read_json(self.path / "key_sets.json").get(key_list_digest(self.params, keys)) == key_set_id:
                forget_key_set(self.path, key_set_id)


@contextmanager
def locked_entry(entry: Path) -> Iterator[None]:
    """Exclusive use of an entry among processes."""
    with locked(entry / "lock", _LOCK_SECONDS):
        yield


def key_set_ids(entry: Path) -> list[str]:
    """The server's names of all key sets that were uploaded from an entry."""
    return [known for known in _read_json(entry / "key_sets.json").values() if isinstance(known, str)]


def forget_key_set(entry: Path, key_set_id: str) -> None:
    """Drop one of them. Call with the entry's lock held."""
    known = _read_json(entry / "key_sets.json")
    kept = {name: value for name, value in known.items() if value != key_set_id}
    if kept != known:
        write_atomic(entry / "key_sets.json", _json(kept))


def _json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=1, sort_keys=True).encode()


def _read_json(path: Path) -> dict[str, Any]:
    """A small JSON object, {} where absent; KeyStoreError where damaged."""
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise KeyStoreError(f"cannot read {path}: it is not JSON; try deleting it") from error
    if not isinstance(record, dict):
        raise KeyStoreError(f"cannot read {path}: it is not a JSON object; try deleting it")
    return record
