"""What keys there are of one server: here, where the secrets are, and there, where the evaluation keys are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from he_runtime.errors import Reason
from protos.native import KeySetInfo

from . import calls
from .errors import KeyStoreError, NotPermitted, ServerError, ServerUntrusted
from .keystore import EntryInfo, KeyStore, ServerIdentity, forget_key_set, key_set_ids, locked_entry
from .port import Port, ask
from .retry import Budget

__all__ = ["StoredKeys", "delete_keys", "list_keys"]

_MOST_KEY_SETS = 100_000  # that a server may list


@dataclass(frozen=True)
class StoredKeys:
    """One uploaded key set, or a secret key without any.

    `params_digest` names the CKKS parameters, and with them the secret key, `handle` (a digest, "" where nothing is
    uploaded) the key set. `here`: the secret is in this key store. `at_server`: the server has the set; of `total_bytes`
    there. Times are seconds since the epoch, 0.0 where not known: `created` by this clock where `here`, others by the server's.
    """

    params_digest: str
    params_name: str
    handle: str
    here: bool
    at_server: bool
    total_bytes: int = 0
    created: float = 0.0
    last_used: float = 0.0
    expires: float = 0.0


async def list_keys(port: Port, store: KeyStore, server: ServerIdentity, budget: Budget) -> list[StoredKeys]:
    """All keys of this server, those of this store first.

    A server that knows who is calling lists the caller's sets, also those from other machines. One that does not can only
    be asked for the sets whose ids are known here.
    """
    entries = _entries(store, server)
    ids = {_handle(known): known for info in entries for known in key_set_ids(info.path)}
    there = await _at_server(port, ids, budget)
    found = []
    for info in entries:
        own = StoredKeys(info.params_digest, info.params_name, "", True, False, created=info.created)
        sets = [_row(own, _handle(known), there.pop(_handle(known), None)) for known in key_set_ids(info.path)]
        found += sets or [own]
    names = {info.params_digest: info.params_name for info in entries}
    for handle, other in there.items():
        base = StoredKeys(other.params_digest, names.get(other.params_digest, ""), handle, False, True)
        found.append(_row(replace(base, created=other.created_unix_ms / 1e3), handle, other))
    return found


async def delete_keys(
    port: Port, store: KeyStore, server: ServerIdentity, budget: Budget, names: tuple[str, ...]
) -> list[StoredKeys]:
    """Delete keys, at the server first, and return what they were.

    A name is (the beginning, at least 8 digits, of) a params_digest: then the secret key is destroyed with everything that
    was made of it, and results of its jobs with it; or of a handle: then that key set only, and the secret stays. KeyStoreError
    for a name that is not exactly one of these.
    """
    every, entries = await list_keys(port, store, server, budget), _entries(store, server)
    gone: dict[tuple[str, str], StoredKeys] = {}
    for name in names:
        for keys in _named(name, every):
            if keys.at_server:
                await _forgotten_there(port, keys, entries, budget)
            gone[keys.params_digest, keys.handle] = keys
        for info in entries:
            if _begins(info.params_digest, name) and info.path.exists():
                store.delete(info)
    return list(gone.values())


def _entries(store: KeyStore, server: ServerIdentity) -> list[EntryInfo]:
    where = store.server(server)
    return [info for info in store.entries() if info.path.parent == where]


def _handle(key_set_id: str) -> str:
    return hashlib.sha256(key_set_id.encode()).hexdigest()


async def _at_server(port: Port, ids: dict[str, str], budget: Budget) -> dict[str, KeySetInfo]:
    """By handle. Those of the caller, or where the server knows no callers, those known by id."""
    found: dict[str, KeySetInfo] = {}
    token, first = "", True
    try:
        while first or token:
            page = await ask(port, calls.list_key_sets(token), budget)
            found.update((_checked(k).handle, k) for k in page.key_sets)
            if len(found) > _MOST_KEY_SETS or (not page.key_sets and page.next_page_token):
                raise ServerUntrusted(f"cannot list the keys: got {len(found)} or more and no end")
            token, first = page.next_page_token, False
    except NotPermitted:
        for handle, key_set_id in ids.items():
            try:
                found[handle] = await ask(port, calls.get_key_set(key_set_id), budget)
            except ServerError as error:
                if error.reason is not Reason.KEY_SET_UNKNOWN:
                    raise
    return found


def _checked(found: KeySetInfo) -> KeySetInfo:
    if not all(len(text) == 64 and text.isalnum() and text.isascii() for text in (found.handle, found.params_digest)):
        raise ServerUntrusted("cannot list the keys: got a handle or a digest that is none")
    return found


def _row(own: StoredKeys, handle: str, there: KeySetInfo | None) -> StoredKeys:
    if there is None:
        return replace(own, handle=handle)
    return replace(
        own,
        handle=handle,
        at_server=True,
        total_bytes=there.total_bytes,
        last_used=there.last_used_unix_ms / 1e3,
        expires=there.expires_unix_ms / 1e3,
    )


def _begins(full: str, name: str) -> bool:
    return len(name) >= 8 and full.startswith(name)


def _named(name: str, every: list[StoredKeys]) -> list[StoredKeys]:
    by_params = [keys for keys in every if _begins(keys.params_digest, name)]
    by_handle = [keys for keys in every if _begins(keys.handle, name)]
    found = by_params or by_handle
    if not found or (by_params and by_handle) or len({k.params_digest if by_params else k.handle for k in found}) > 1:
        raise KeyStoreError(
            f"cannot delete keys {name!r}: got a name that is {'ambiguous' if found else 'unknown'}, need (the first 8 or more "
            "digits of) one params_digest or handle; try listing the keys"
        )
    return found


async def _forgotten_there(port: Port, keys: StoredKeys, entries: list[EntryInfo], budget: Budget) -> None:
    """Delete a set at the server, by its id where that is known, and drop what is noted of it here."""
    for info in entries:
        for known in key_set_ids(info.path):
            if _handle(known) == keys.handle:
                await _delete(port, known, "", budget)
                with locked_entry(info.path):
                    forget_key_set(info.path, known)
                return
    await _delete(port, "", keys.handle, budget)


async def _delete(port: Port, key_set_id: str, handle: str, budget: Budget) -> None:
    try:
        await ask(port, calls.delete_key_set(key_set_id, handle), budget)
    except ServerError as error:
        if error.reason is not Reason.KEY_SET_UNKNOWN:
            raise
