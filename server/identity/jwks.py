"""The keys that bearer tokens are verified with: a JWKS or PEM file of public keys, checked when it is read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError

__all__ = ["ALGORITHMS", "VerificationKey", "read_keys"]

# Algorithm -> the kind of key it is for. "none" is not among them, so no configuration can allow it.
ALGORITHMS = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    "ES256": "P-256",
    "ES384": "P-384",
    "ES512": "P-521",
    "EdDSA": "OKP",
    **dict.fromkeys(("HS256", "HS384", "HS512"), "oct"),
}
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----", re.DOTALL)
_MAX_KEYS = 64  # each may be tried for a token that names none
_MIN_RSA_BITS = 2048
_MIN_SECRET_BYTES = 32


@dataclass(frozen=True)
class VerificationKey:
    """A key and what it may verify. `kind` is a value of ALGORITHMS."""

    kind: str
    key: Any = field(repr=False)
    key_id: str = ""
    algorithm: str = ""  # the only one it is for, where the file says so

    def fits(self, algorithm: str, key_id: str) -> bool:
        """Whether a token with this header may be verified with this key: a key is used for its own kind only."""
        return (
            ALGORITHMS.get(algorithm) == self.kind
            and self.algorithm in ("", algorithm)
            and (not key_id or self.key_id in ("", key_id))
        )


def read_keys(path: Path, algorithms: Sequence[str]) -> tuple[VerificationKey, ...]:
    """The keys in a file that `algorithms` have use for; ConfigError for none, for private ones and for weak ones."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot use jwt.keys = {path}: {error.strerror or error}") from error
    try:
        found = _from_pem(content) if content.lstrip().startswith(b"-----") else _from_jwks(content)
    except ConfigError:
        raise
    except Exception as error:  # whatever the libraries raise; their messages quote the file
        raise ConfigError(
            f"cannot use jwt.keys = {path}: need a JWKS or PEM public keys, got damaged ones ({type(error).__name__})"
        ) from None
    useful = [key for key in found if key.kind in {ALGORITHMS.get(name) for name in algorithms}]
    if not useful or len(useful) > _MAX_KEYS:
        raise ConfigError(
            f"cannot use jwt.keys = {path}: got {len(useful)} keys for {', '.join(algorithms)}, need 1 to {_MAX_KEYS}"
        )
    for key in useful:
        _check_strength(key, path)
    return tuple(useful)


def _from_pem(content: bytes) -> list[VerificationKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    found = []
    for block in _PEM.finditer(content):
        if b"PRIVATE" in block[1]:
            raise ConfigError("cannot use jwt.keys: got a private key, need public ones; try `openssl pkey -pubout`")
        public: Any
        if block[1] == b"CERTIFICATE":
            public = x509.load_pem_x509_certificate(block[0]).public_key()
        else:
            public = serialization.load_pem_public_key(block[0])
        found.append(VerificationKey(_kind(public), public))
    return found


def _from_jwks(content: bytes) -> list[VerificationKey]:
    import jwt

    record = json.loads(content)
    found = []
    for entry in record["keys"]:
        kind, stated = entry.get("kty"), entry.get("alg")
        if "d" in entry:
            raise ConfigError("cannot use jwt.keys: got a private key in the JWKS, need public ones")
        if kind not in ("RSA", "EC", "OKP", "oct") or entry.get("use", "sig") != "sig":
            continue  # for encryption, or of a kind that nothing here verifies with
        if stated is not None and stated not in ALGORITHMS:
            continue
        key: Any = jwt.PyJWK(entry, stated).key
        kind = "oct" if kind == "oct" else _kind(key)
        found.append(VerificationKey(kind, key, str(entry.get("kid", "")), stated or ""))
    return found


def _kind(key: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

    if isinstance(key, rsa.RSAPublicKey):
        return "RSA"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return _CURVES.get(key.curve.name, key.curve.name)
    return "OKP" if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey) else "other"


def _check_strength(key: VerificationKey, path: Path) -> None:
    if key.kind == "RSA" and key.key.key_size < _MIN_RSA_BITS:
        raise ConfigError(
            f"cannot use jwt.keys = {path}: got an RSA key of {key.key.key_size} bits, need {_MIN_RSA_BITS}"
        )
    if key.kind == "oct" and len(key.key) < _MIN_SECRET_BYTES:
        raise ConfigError(
            f"cannot use jwt.keys = {path}: got a secret of {len(key.key)} bytes, need {_MIN_SECRET_BYTES}"
        )
