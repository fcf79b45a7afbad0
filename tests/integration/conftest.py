"""One real server for the session, and a client of it; after every test both must still do what they did before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from client import Client
from tests.integration.stack import MODELS, RawClient, Stack, make_root, own_stack

OwnStack = Callable[..., AbstractContextManager[Stack]]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("stack")
    stack = Stack(root, make_root(root))
    stack.start()
    yield stack
    stack.stop()


@pytest.fixture(scope="session")
def client(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with stack.connect(tmp_path_factory.mktemp("home")) as connected:
        yield connected


@pytest.fixture(scope="session")
def raw(stack: Stack) -> Iterator[RawClient]:
    with stack.channel() as channel:
        yield RawClient.make(channel, MODELS[0])


@pytest.fixture
def still_serving(stack: Stack, client: Client) -> Iterator[None]:
    """After the test a good request is answered, by the very worker that was there before."""
    stack.check(client)
    workers = stack.workers()
    yield
    stack.check(client)
    assert stack.workers() == workers, "no worker died of it"


@pytest.fixture
def own(stack: Stack, tmp_path: Path) -> OwnStack:
    """A server of the test's own: `with own(KEYS_BUDGET_BYTES="5000000") as served`."""
    return lambda **settings: own_stack(stack, tmp_path / "own", **settings)
