"""What identity tests need: a small certificate authority, and an issuer of tokens."""

from __future__ import annotations

import datetime
import ipaddress
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, as PEM."""

    certificate: bytes
    key: bytes

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        directory.mkdir(parents=True, exist_ok=True)
        paths = directory / f"{name}.pem", directory / f"{name}.key"
        for path, content in zip(paths, (self.certificate, self.key), strict=True):
            path.write_bytes(content)
        return paths


def _private_pem(key: Any) -> bytes:
    return bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@dataclass
class Authority:
    """A root that issues certificates for servers on loopback and for clients."""

    name: str = "test root"
    _key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()), repr=False)

    def __post_init__(self) -> None:
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        self.pem = self._sign(self._subject, self._key, ca=True, days=(-1, 30), names=(), use=None)

    def issue(
        self,
        organizations: tuple[str, ...] = ("acme",),
        common_name: str = "worker",
        uris: tuple[str, ...] = (),
        days: tuple[float, float] = (-1, 1),
        use: Any = CLIENT,
    ) -> Pair:
        """A client certificate, valid from `days[0]` to `days[1]` from now."""
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in organizations]
        attributes += [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
        key = ec.generate_private_key(ec.SECP256R1())
        names = tuple(x509.UniformResourceIdentifier(uri) for uri in uris)
        return Pair(
            self._sign(x509.Name(attributes), key, ca=False, days=days, names=names, use=use), _private_pem(key)
        )

    def issue_server(self) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        names = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        return Pair(self._sign(subject, key, ca=False, days=(-1, 1), names=names, use=SERVER), _private_pem(key))

    def _sign(
        self, subject: x509.Name, key: Any, *, ca: bool, days: tuple[float, float], names: Any, use: Any
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=days[0]))
            .not_valid_after(now + datetime.timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if use is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def channel(address: str, authority: Authority, pair: Pair | None = None) -> grpc.Channel:
    """A channel that trusts `authority` for the server and shows `pair`."""
    key, chain = (pair.key, pair.certificate) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.pem, key, chain)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", "localhost")]
    return grpc.secure_channel(address, credentials, options)


@dataclass
class Issuer:
    """An identity provider: signs tokens, and publishes its public key."""

    key_id: str = "k1"
    algorithm: str = "ES256"
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()), repr=False)

    NAME = "https://issuer.example"
    AUDIENCE = "secateur-test"

    def token(self, tenant: Any = "acme", header: dict[str, Any] | None = None, **changes: Any) -> str:
        """A token that holds, but for `changes` of its claims (None removes one)."""
        claims = {
            "iss": self.NAME,
            "aud": self.AUDIENCE,
            "sub": f"user of {tenant}",
            "exp": int(time.time()) + 300,
            "tenant": tenant,
            **changes,
        }
        kept = {name: value for name, value in claims.items() if value is not None}
        headers = {name: value for name, value in {"kid": self.key_id, **(header or {})}.items() if value is not None}
        return jwt.encode(kept, self.key, self.algorithm, headers=headers)

    @property
    def public_pem(self) -> bytes:
        public: bytes = self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return public

    @property
    def jwk(self) -> dict[str, Any]:
        algorithm: Any = jwt.get_algorithm_by_name(self.algorithm)
        return {**algorithm.to_jwk(self.key.public_key(), as_dict=True), "kid": self.key_id, "alg": self.algorithm}


def write_jwks(path: Path, *keys: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"keys": list(keys)}))
    return path


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata that shows a token."""
    return (("authorization", f"Bearer {token}"),)


class Showing(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[misc]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[misc]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[misc]
):
    """Shows a token in every call of a channel."""

    def __init__(self, token: str) -> None:
        self._token = token

    def _call(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=(*(details.metadata or ()), *bearer(self._token))), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = _call
