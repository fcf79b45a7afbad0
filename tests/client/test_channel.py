"""TLS: a root, a pinned certificate, a fingerprint; and no clear text except where it is safe or asked for."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client import Client, Limits, ServerError, ServerUnreachable, ServerUntrusted
from client.channel import Endpoint, open_channel


@dataclass(frozen=True)
class Certificate:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.certificate.public_bytes(serialization.Encoding.DER)).hexdigest()

    def credentials(self) -> grpc.ServerCredentials:
        key = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return grpc.ssl_server_credentials([(key, self.pem)])


def _certificate(name: str, issuer: Certificate | None = None, ca: bool = False) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    )
    return Certificate(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


@pytest.fixture(scope="module")
def root() -> Certificate:
    return _certificate("root", ca=True)


@pytest.fixture(scope="module")
def leaf(root: Certificate) -> Certificate:
    return _certificate("leaf", issuer=root)


@pytest.fixture
def tls_server(leaf: Certificate, server: Any) -> Iterator[Any]:
    secured = type(server)(leaf.credentials())
    yield secured
    secured.stop()


@pytest.mark.parametrize("trusted", ["root", "leaf", "fingerprint", "colons"])
def test_a_trusted_server_is_reached(
    tls_server: Any, root: Certificate, leaf: Certificate, sample: np.ndarray, tmp_path: Path, trusted: str
) -> None:
    certificate: str | Path = tmp_path / "trusted.pem"
    if trusted in ("root", "leaf"):
        Path(certificate).write_bytes((root if trusted == "root" else leaf).pem)
    elif trusted == "fingerprint":
        certificate = f"sha256:{leaf.fingerprint}"
    else:
        certificate = leaf.certificate.fingerprint(hashes.SHA256()).hex(":").upper()
    with Client.connect(tls_server.address, certificate=certificate, home=tmp_path / "home") as client:
        assert client.predict("echo", sample).index == 5
        (entry,) = client.keystore.entries()
    assert entry.fingerprint == (root if trusted == "root" else leaf).fingerprint


def test_another_certificate_of_the_same_name_is_refused(tls_server: Any, tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_bytes(_certificate("leaf").pem)
    with pytest.raises(ServerUnreachable, match="certificate="):
        Client.connect(tls_server.address, certificate=tmp_path / "other.pem", home=tmp_path, timeout=1.0)


def test_another_fingerprint_is_refused_before_anything_is_sent(tls_server: Any, tmp_path: Path) -> None:
    with pytest.raises(ServerUntrusted, match="got certificate sha256:"):
        Client.connect(tls_server.address, certificate="sha256:" + "0" * 64, home=tmp_path)
    assert tls_server.calls == []


def test_a_pinned_server_that_is_down_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(ServerUnreachable, match="over TLS"):
        Client.connect("127.0.0.1:1", certificate="sha256:" + "0" * 64, home=tmp_path, timeout=2.0)


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"])
def test_a_certificate_file_that_is_none_is_refused(server: Any, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "x.pem").write_bytes(content)
    with pytest.raises(ServerUntrusted, match="certificate"):
        Client.connect(server.address, certificate=tmp_path / "x.pem", home=tmp_path)


def _secure(monkeypatch: pytest.MonkeyPatch, address: str, allow: bool) -> bool:
    made: list[str] = []
    monkeypatch.setattr(grpc, "insecure_channel", lambda *a: made.append("insecure"))
    monkeypatch.setattr(grpc, "secure_channel", lambda *a: made.append("secure"))
    open_channel(Endpoint.parse(address), None, Limits(), allow_insecure=allow, timeout_seconds=1.0)
    return made == ["secure"]


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "unix:/run/x.sock"])
def test_loopback_may_be_in_the_clear(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    assert not _secure(monkeypatch, address, allow=False)


@pytest.mark.parametrize(
    "address", ["example.org:1", "10.0.0.1:1", "localhost.example.org:1", "[2001:db8::1]:1", "0.0.0.0:1"]
)
def test_any_other_host_needs_tls_unless_allowed(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    assert _secure(monkeypatch, address, allow=False)
    assert not _secure(monkeypatch, address, allow=True)


@pytest.mark.parametrize(
    "address", ["", "unix:", "localhost", ":1", "localhost:", "localhost:x", "localhost:0", "localhost:70000"]
)
def test_an_address_needs_host_and_port(address: str) -> None:
    with pytest.raises(ServerError, match="need host:port"):
        Endpoint.parse(address)


def test_an_address_has_one_spelling() -> None:
    assert str(Endpoint.parse("dns:///LocalHost:5")) == "localhost:5"
    assert str(Endpoint.parse("[::1]:5")) == "[::1]:5"


def test_a_unix_socket_is_reached_but_cannot_be_pinned(server: Any, tmp_path: Path) -> None:
    socket = f"unix:{tmp_path}/s"
    listening = type(server)(socket=socket)
    try:
        with Client.connect(socket, home=tmp_path / "home") as client:
            assert [m.name for m in client.models()] == ["echo"]
    finally:
        listening.stop()
    with pytest.raises(ServerUntrusted, match="need host:port"):
        Client.connect(socket, certificate="sha256:" + "0" * 64)
