"""TLS on loopback with a pinned certificate, and everything that must not get through."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from harness import Caller, failure, make_config

from server.config import TlsConfig
from server.errors import ConfigError
from server.identity.tls import make_self_signed, read_pair
from server.running import RunningServer, start


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, pair: tuple[Path, Path]) -> Iterator[RunningServer]:
    tls = {"enabled": True, "certificate": pair[0], "private_key": pair[1]}
    with start(make_config(tmp_path_factory.mktemp("secured"), tls=tls)) as server:
        yield server


def test_a_client_that_pins_the_certificate_is_served(secured: RunningServer, pair: tuple[Path, Path]) -> None:
    credentials = grpc.ssl_channel_credentials(pair[0].read_bytes())
    with grpc.secure_channel(secured.address, credentials) as channel:
        caller = Caller(channel)
        assert caller.infer(caller.upload().key_set_id, b"echo:x").ciphertexts.endswith(b"|x")


def test_a_plaintext_client_is_refused(secured: RunningServer) -> None:
    with grpc.insecure_channel(secured.address) as channel:
        assert failure(lambda: Caller(channel).get_model()).reason == "SERVER_UNREACHABLE"


def test_a_client_that_pins_another_certificate_refuses(secured: RunningServer, tmp_path: Path) -> None:
    other, _ = make_self_signed(tmp_path)
    with grpc.secure_channel(secured.address, grpc.ssl_channel_credentials(other.read_bytes())) as channel:
        assert failure(lambda: Caller(channel).get_model()).reason == "SERVER_UNREACHABLE"


def test_the_private_key_is_readable_by_its_owner_only(pair: tuple[Path, Path]) -> None:
    assert pair[1].stat().st_mode & 0o777 == 0o600


def test_a_mismatched_or_missing_pair_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = make_self_signed(tmp_path)
    cases = [
        (TlsConfig(True, pair[0], other[1]), "does not belong"),
        (TlsConfig(True, None, pair[1]), "tls.certificate is not set"),
        (TlsConfig(True, pair[0], None), "tls.private_key is not set"),
        (TlsConfig(True, tmp_path / "absent.pem", pair[1]), "tls.certificate"),
        (TlsConfig(True, pair[1], pair[1]), "need a PEM certificate"),
        (TlsConfig(True, pair[0], pair[0]), "need an unencrypted PEM private key"),
    ]
    for tls, message in cases:
        with pytest.raises(ConfigError, match=message):
            read_pair(tls)


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    tls = TlsConfig(True, *make_self_signed(tmp_path, days=1))
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1, minutes=1)
    with pytest.raises(ConfigError, match="need one valid at"):
        read_pair(tls, tomorrow)
    assert read_pair(tls)
