"""What a client shows of itself: tokens that are renewed in time, certificates, and neither where others could read them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from client import Client, CredentialError, Limits, NotAuthenticated, NotPermitted, ServerUnreachable
from client.channel import Endpoint, open_channel
from client.credentials import TokenSource
from he_runtime.errors import Reason
from protos.status import Failure


def jwt(expires: float | None, name: str = "t") -> str:
    """An unsigned token: a client reads nothing of one but when it expires."""
    claims = {"name": name} | ({"exp": expires} if expires is not None else {})
    parts = (json.dumps(part).encode() for part in ({"alg": "ES256"}, claims))
    return ".".join([*(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts), "c2ln"])


@pytest.fixture
def guarded(server: Any) -> Iterator[Any]:
    """A server that takes the tokens in `accepted`, and notes what it was shown."""

    class Guarded(type(server)):  # type: ignore[misc]
        accepted: tuple[str, ...] = ()
        refusal = "UNAUTHENTICATED"
        refuse_chunks = 0  # of the next streams

        def _check(self, context: grpc.ServicerContext) -> None:
            value = dict(context.invocation_metadata()).get("authorization", "")
            self.shown.append(value)
            if value.removeprefix("Bearer ") not in self.accepted:
                self.fail(context, Failure(self.refusal, "got no valid credential"))

        def ListModels(self, request: Any, context: grpc.ServicerContext) -> Any:
            self._check(context)
            return super().ListModels(request, context)

        def UploadChunks(self, request_iterator: Any, context: grpc.ServicerContext) -> Any:
            if self.refuse_chunks:
                self.refuse_chunks -= 1
                self.fail(context, Failure("UNAUTHENTICATED", "got no valid credential"))
            return super().UploadChunks(request_iterator, context)

    running = Guarded()
    running.shown = []
    yield running
    running.stop()


def test_a_token_is_shown_in_every_call(guarded: Any, tmp_path: Path) -> None:
    guarded.accepted = ("secret",)
    with Client.connect(guarded.address, home=tmp_path, token="secret\n") as client:
        client.models()
    assert guarded.shown == ["Bearer secret"] * 2


@pytest.mark.parametrize(("code", "kind"), [("UNAUTHENTICATED", NotAuthenticated), ("PERMISSION_DENIED", NotPermitted)])
def test_a_refusal_has_a_type_of_its_own_and_says_nothing_of_the_token(
    guarded: Any, tmp_path: Path, code: str, kind: type[Any]
) -> None:
    guarded.refusal = code
    with pytest.raises(kind) as caught:
        Client.connect(guarded.address, home=tmp_path, token="secret")
    assert caught.value.reason is Reason(code) and "secret" not in str(caught.value)
    assert len(guarded.shown) == 1, "the same token is not shown twice"


def test_a_refused_token_is_renewed_once(guarded: Any, tmp_path: Path) -> None:
    tokens = iter(("first", "second", "third"))
    guarded.accepted = ("second",)
    with Client.connect(guarded.address, home=tmp_path, token=lambda: next(tokens)) as client:
        client.models()
        assert guarded.shown == ["Bearer first", "Bearer second", "Bearer second"]
        guarded.accepted = ()
        with pytest.raises(NotAuthenticated):
            client.models()
    assert guarded.shown[3:] == ["Bearer second", "Bearer third"]


def test_an_upload_goes_on_with_a_renewed_token(guarded: Any, sample: np.ndarray, tmp_path: Path) -> None:
    made: list[str] = []

    def make() -> str:
        made.append(f"token{len(made)}")
        return made[-1]

    guarded.accepted, guarded.refuse_chunks = ("token0", "token1"), 1
    with Client.connect(guarded.address, home=tmp_path, token=make) as client:
        assert client.predict("echo", sample).index == 5
    assert made == ["token0", "token1"]


def test_a_token_is_renewed_before_it_expires_and_not_earlier() -> None:
    now = time.time()
    tokens = [jwt(now + 10, "soon"), jwt(now + 3600, "later"), jwt(now + 7200, "not needed")]
    left = iter(tokens)
    source = TokenSource(lambda: next(left))
    assert [source.current() for _ in range(4)] == [tokens[0], tokens[1], tokens[1], tokens[1]]


@pytest.mark.parametrize("token", ["opaque", "a.b.c", jwt(None), "a." + "W" * 4000 + ".c"])
def test_a_token_that_does_not_say_when_it_expires_is_kept(token: str) -> None:
    asked: list[int] = []

    def make() -> str:
        asked.append(1)
        return token

    source = TokenSource(make)
    assert [source.current(), source.current()] == [token, token] and len(asked) == 1


def test_a_token_file_is_read_for_every_call(guarded: Any, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    guarded.accepted = ("first", "second")
    with Client.connect(guarded.address, home=tmp_path / "home", token=file) as client:
        file.write_text("second\n")
        client.models()
    assert guarded.shown == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize(
    "token", ["", " ", "two words", "line\nbreak", "ü", "x" * 9000, lambda: None, Path("/nowhere")]
)
def test_a_token_that_is_none_is_refused_before_a_call(guarded: Any, tmp_path: Path, token: Any) -> None:
    with pytest.raises(CredentialError, match="token") as caught:
        Client.connect(guarded.address, home=tmp_path, token=token)
    assert guarded.shown == []
    for secret in ("two", "break", "ü", "xxx"):
        assert secret not in str(caught.value)


def test_a_token_is_not_sent_in_the_clear_to_another_machine() -> None:
    def opened(address: str, allow: bool) -> None:
        channel, _ = open_channel(
            Endpoint.parse(address), None, Limits(), allow_insecure=allow, timeout_seconds=1.0, with_token=True
        )
        channel.close()

    opened("127.0.0.1:1", False)
    opened("unix:/run/x.sock", False)
    opened("example.org:1", False)  # over TLS
    with pytest.raises(CredentialError, match="in the clear"):
        opened("example.org:1", True)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    from server import make_self_signed

    return make_self_signed(tmp_path / "own")


@pytest.fixture
def mutual(server: Any, pair: tuple[Path, Path]) -> Iterator[Any]:
    """A server that demands a certificate of the one root that it knows."""
    certificate, key = (path.read_bytes() for path in pair)
    running = type(server)(grpc.ssl_server_credentials([(key, certificate)], certificate, True))
    yield running
    running.stop()


def test_a_client_certificate_is_shown(mutual: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    for trusted in (pair[0], "sha256:" + _fingerprint(pair[0])):
        with Client.connect(mutual.address, certificate=trusted, client_certificate=pair, home=tmp_path) as client:
            assert [m.name for m in client.models()] == ["echo"]
    with pytest.raises(ServerUnreachable, match="client_certificate="):
        Client.connect(mutual.address, certificate=pair[0], home=tmp_path, timeout=1.0)


def _fingerprint(path: Path) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    return x509.load_pem_x509_certificate(path.read_bytes()).fingerprint(hashes.SHA256()).hex()


def test_a_client_certificate_that_is_none_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = pair
    with pytest.raises(CredentialError, match="need TLS"):
        Client.connect("127.0.0.1:1", client_certificate=pair, home=tmp_path)
    for wrong in ((key, certificate), (certificate, certificate), (key, key), (certificate, tmp_path / "absent")):
        with pytest.raises(CredentialError):
            Client.connect("127.0.0.1:1", certificate=certificate, client_certificate=wrong, home=tmp_path)
