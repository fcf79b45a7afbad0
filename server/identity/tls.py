"""Certificates: reading the operator's, again when they change, and making a self-signed one for loopback to pin."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .reload import Reloading
from .settings import TlsConfig

if TYPE_CHECKING:
    import grpc
    from cryptography import x509

__all__ = ["make_self_signed", "read_client_ca", "read_pair", "server_credentials"]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def make_self_signed(directory: Path | str, hosts: Sequence[str] = _LOOPBACK, days: int = 30) -> tuple[Path, Path]:
    """Write certificate.pem and private_key.pem (0600) for `hosts`; returns their paths.

    The certificate is its own root: a client pins it by trusting this file and nothing else. For demos and tests.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "secateur self-signed")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([_general_name(h) for h in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    certificate_path, key_path = folder / "certificate.pem", folder / "private_key.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key_path.unlink(missing_ok=True)
    with os.fdopen(os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate_path, key_path


def _general_name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def read_pair(tls: TlsConfig, at: datetime.datetime | None = None) -> tuple[bytes, bytes]:
    """(certificate chain, private key) as PEM, checked to belong together and to be valid at a time (none: now).

    Raises ConfigError naming the key of the configuration that is wrong.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    chain = _read(tls.certificate, "tls.certificate")
    secret = _read(tls.private_key, "tls.private_key")
    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise ConfigError(f"cannot use tls.certificate = {tls.certificate}: need a PEM certificate") from error
    try:
        key = serialization.load_pem_private_key(secret, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"cannot use tls.private_key = {tls.private_key}: need an unencrypted PEM private key"
        ) from error
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if certificate.public_key().public_bytes(*spki) != key.public_key().public_bytes(*spki):
        raise ConfigError("cannot use tls.private_key: it does not belong to tls.certificate; need a matching pair")
    now = at or datetime.datetime.now(datetime.UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise ConfigError(
            f"cannot use tls.certificate: valid from {certificate.not_valid_before_utc} to "
            f"{certificate.not_valid_after_utc}, need one valid at {now}; try renewing it"
        )
    return chain, secret


def _read(path: Path | None, name: str) -> bytes:
    if path is None:
        remedy = "" if name == "tls.client_ca" else "; try make_self_signed for loopback"
        raise ConfigError(f"cannot use TLS: {name} is not set, need a PEM file{remedy}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot use {name} = {path}: {error.strerror or error}") from error


def read_client_ca(tls: TlsConfig) -> bytes:
    """The roots that client certificates must lead to, as PEM; ConfigError for a file that holds none."""
    from cryptography import x509

    roots = _read(tls.client_ca, "tls.client_ca")
    try:
        x509.load_pem_x509_certificates(roots)
    except ValueError as error:
        raise ConfigError(f"cannot use tls.client_ca = {tls.client_ca}: need PEM certificates") from error
    return roots


def server_credentials(tls: TlsConfig, *, demand_client: bool = False) -> grpc.ServerCredentials:
    """Credentials that follow their files: each handshake is made with what lies there then.

    With `demand_client` no connection comes about without a certificate of `tls.client_ca`. Connections that are open
    stay as they are. Raises ConfigError when the files do not hold what is needed now.
    """
    import grpc

    def load() -> grpc.ServerCertificateConfiguration:
        chain, secret = read_pair(tls)
        roots = read_client_ca(tls) if demand_client else None
        return grpc.ssl_server_certificate_configuration([(secret, chain)], roots)

    files = (tls.certificate, tls.private_key, tls.client_ca if demand_client else None)
    current = Reloading("tls", [path for path in files if path is not None], load)
    return grpc.dynamic_ssl_server_credentials(current.get(), current.get, demand_client)
