"""What a client shows of itself: a certificate with its private key, or a bearer token that is renewed in time."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .errors import CredentialError

__all__ = ["Token", "TokenSource", "read_client_certificate"]

Token = str | Path | Callable[[], str]
_RENEW_SECONDS = 30.0  # before a token expires
_MAX_TOKEN_CHARS = 8192


class TokenSource:
    """A bearer token: the token itself, a file that holds it, or a callable that makes one.

    A file is read for every call, so that whoever renews it need not tell. A callable is asked when its last token is
    about to expire (by the token's own `exp`, where it is a readable JWT) or was refused. Thread-safe.
    """

    def __init__(self, source: Token) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._token = ""
        self._until = 0.0  # seconds since the epoch

    def __repr__(self) -> str:
        return "TokenSource(...)"

    def current(self) -> str:
        """The token to show now; CredentialError when there is none."""
        with self._lock:
            if not callable(self._source):
                return _checked(_read(self._source) if isinstance(self._source, Path) else self._source)
            if not self._token or time.time() >= self._until - _RENEW_SECONDS:
                self._renew()
            return self._token

    def after_refusal(self, refused: str) -> str | None:
        """Another token than the one that a server just refused; None where there is no other."""
        with self._lock:
            if callable(self._source) and self._token == refused:
                self._renew()
        token = self.current()
        return token if token != refused else None

    def _renew(self) -> None:
        assert callable(self._source)
        self._token = _checked(self._source())
        self._until = _expiry(self._token)


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text"
        raise CredentialError(f"cannot read the token in {path}: {reason}; need a file that holds one token") from error


def _checked(token: object) -> str:
    """A token fits into an HTTP header: anything else is refused here, without being shown."""
    if not isinstance(token, str) or not token.strip():
        raise CredentialError("cannot use the token: got none, need a text; try asking your identity provider")
    token = token.strip()
    if len(token) > _MAX_TOKEN_CHARS or not token.isascii() or not token.isprintable() or " " in token:
        raise CredentialError(
            f"cannot use the token: got {len(token)} characters, need at most {_MAX_TOKEN_CHARS} printable ones without spaces"
        )
    return token


def _expiry(token: str) -> float:
    """When a JWT says that it expires; infinity where it does not, as only the server can tell then."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return float("inf")


def read_client_certificate(certificate: str | Path, key: str | Path) -> tuple[bytes, bytes]:
    """(chain, private key) as PEM; CredentialError when they cannot be read or are of the wrong kind."""
    chain, secret = _bytes(certificate), _bytes(key)
    if b"-----BEGIN CERTIFICATE-----" not in chain or b"PRIVATE KEY-----" not in secret:
        raise CredentialError(
            "cannot use the client certificate: need (certificate, private key), two PEM files in this order"
        )
    return chain, secret


def _bytes(path: str | Path) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise CredentialError(f"cannot read {path}: {error.strerror or error}; need a PEM file") from error
