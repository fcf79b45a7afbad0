"""Fixtures of the server's tests. The fake runtime must be importable by name, here and in the workers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

sys.path.append(str(Path(__file__).parent))

from harness import Caller, make_config
from stores import PrivatePostgres, PrivateS3, Setup, make_setup, postgres_binaries, s3_credentials

from server.running import RunningServer, start

Serve = Callable[..., tuple[RunningServer, Caller]]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Caller]]:
    """One server with two workers and default limits, for tests that leave it as they found it."""
    config = make_config(
        tmp_path_factory.mktemp("shared"),
        engine={"workers": 2},
        limits={"max_message_bytes": 1 << 20, "max_chunk_bytes": 1 << 18},
    )
    with start(config) as server, grpc.insecure_channel(server.address) as channel:
        yield server, Caller(channel)


@pytest.fixture
def caller(shared: tuple[RunningServer, Caller]) -> Caller:
    return shared[1]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a server of the test's own on tmp_path; called again it is a restart on the same state."""
    running: list[tuple[RunningServer, grpc.Channel]] = []

    def start_one(**sections: dict[str, Any]) -> tuple[RunningServer, Caller]:
        server = start(make_config(tmp_path, **sections))
        channel = grpc.insecure_channel(server.address)
        running.append((server, channel))
        return server, Caller(channel)

    yield start_one
    for server, channel in running:
        channel.close()
        server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: found no initdb; try apt-get install postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed; try pip install 'secateur[postgres]'")
    server = PrivatePostgres(binaries)
    yield server
    server.close()


@pytest.fixture(scope="session")
def s3() -> Iterator[PrivateS3]:
    pytest.importorskip("obstore", reason="obstore is not installed; try pip install 'secateur[s3]'")
    pytest.importorskip("moto", reason="moto is not installed; try pip install 'secateur[dev]'")
    with s3_credentials():
        server = PrivateS3()
        yield server
        server.stop()


@pytest.fixture(params=["sqlite-files", "sqlite-s3", "postgres-files", "postgres-s3"])
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setup]:
    """A key store on every combination of database and blobs."""
    made = make_setup(request, tmp_path, *request.param.split("-"))
    yield made
    made.close()
