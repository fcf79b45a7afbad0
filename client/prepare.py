"""Make a model ready to be called: fetch and distrust its spec, then have its keys on the server exactly once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from he_runtime.client_spec import ClientSpec
from he_runtime.errors import Reason
from he_runtime.wire import key_set_byte_size
from protos.native import ServedModel, ServerInfo

from .errors import ServerError, ServerUntrusted
from .keystore import KeyEntry
from .limits import Limits
from .record_index import RecordIndex
from .spool import Spool, spool_keys
from .transport import Calls
from .trust import parse_spec
from .upload import REFUSED_FOR_GOOD, PiecesLacking, Progress, Uploader

if TYPE_CHECKING:
    from he_runtime.backends.tenseal_secret import SecretKey

__all__ = ["Prepared", "checked_spec", "make_ready"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model that is ready to be called: its checked spec, the secret, and the server's name for the keys.

    `spec_digest` is that of the server's own bytes. `key_bytes` is the size of the key set, `uploaded_bytes` what of
    it had to be sent to make this ready.
    """

    spec: ClientSpec
    spec_digest: str
    entry: KeyEntry
    secret: SecretKey
    key_set_id: str
    key_bytes: int
    uploaded_bytes: int

    def __repr__(self) -> str:
        return f"Prepared({self.spec.model!r}, {self.spec.version!r}, {self.spec.params.name})"


def checked_spec(served: ServedModel, model: str, version: str, limits: Limits) -> tuple[ClientSpec, str]:
    """The checked spec in the reply about one version ("" for the default), and the digest of the server's bytes of it.

    Raises ServerUntrusted when the reply is about something else than was asked, and what trust.parse_spec raises.
    """
    digest = hashlib.sha256(served.client_spec).hexdigest()
    if digest != served.client_spec_digest:
        raise ServerUntrusted(
            f"cannot use the server's spec of {model!r}: got bytes that do not have the digest it states"
        )
    spec = parse_spec(served.client_spec, limits)
    if spec.model != model or spec.version != served.version or (version and spec.version != version):
        raise ServerUntrusted(
            f"cannot use the server's spec: got that of model {spec.model!r} version {spec.version!r}, need {model!r} "
            f"version {version or served.version!r}"[:600]
        )
    return spec, digest


def make_ready(
    transport: Calls,
    entry: KeyEntry,
    spec: ClientSpec,
    spec_digest: str,
    server: ServerInfo,
    progress: Progress | None,
) -> Prepared:
    """Load or make the secret, and upload the keys unless this entry remembers them; one process at a time."""
    key_bytes = key_set_byte_size(spec.keys, spec.params, seeded=True)
    with entry.lock():
        secret = entry.secret()
        key_set_id = entry.key_set_id(spec.keys)
        uploaded = 0
        if key_set_id is None:
            _check_accepted(key_bytes, server)
            uploader = Uploader(transport, server.max_chunk_bytes, progress)
            in_pieces = len(spec.keys.requests) < server.max_upload_pieces
            spool, key_set_id = _uploaded(uploader, entry, secret, spec, spec_digest, in_pieces)
            entry.remember(spec.keys, key_set_id)
            spool.drop()
            uploaded = uploader.sent_bytes
    return Prepared(spec, spec_digest, entry, secret, key_set_id, key_bytes, uploaded)


def _uploaded(
    uploader: Uploader, entry: KeyEntry, secret: SecretKey, spec: ClientSpec, spec_digest: str, in_pieces: bool
) -> tuple[Spool, str]:
    """Make what the server is not known to have, and send it; what the server turns out not to have is made anew."""
    index, keys, mistaken = RecordIndex(entry.path), spec.keys, False
    while True:
        spool = spool_keys(entry, secret, keys, index.known(keys, spec.params) if in_pieces else None)
        try:
            found = uploader.upload(spool, spec.params.digest, spec_digest)
        except PiecesLacking as lacking:
            index.forget(keys.gadget, [spool.records[n - 1] for n in lacking.numbers])
        except ServerError as error:
            if not spool.assumed or error.reason not in REFUSED_FOR_GOOD | {Reason.DIGEST_MISMATCH}:
                raise
            mistaken = True  # perhaps about what is assumed: send everything before giving up
        else:
            if spool.records:
                index.add(keys.gadget, spool.records)
            return spool, found.key_set_id
        if mistaken:
            index.clear()
        mistaken = True


def _check_accepted(key_bytes: int, server: ServerInfo) -> None:
    if 0 < server.max_upload_bytes < key_bytes:
        raise ServerError(
            f"cannot upload the keys: they take {key_bytes} bytes, and the server accepts at most "
            f"{server.max_upload_bytes}; try its operator",
            Reason.LIMIT_EXCEEDED,
        )
