"""Real servers behind the key store's interfaces, private to a test run: PostgreSQL on a unix socket, and moto's S3."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from harness import KEYS, PARAMS, sha256, spec_digest

from he_runtime.errors import Reason, SecateurError
from protos.native import KeySetInfo, UploadInfo, UploadOffer
from server.keys.settings import KeysConfig
from server.keys.store import KeyStore

_ACCOUNTS = ("postgres", "nobody")  # PostgreSQL does not run as root
_DEBIAN = Path("/usr/lib/postgresql")
_BUCKET = "secateur-test"


def postgres_binaries() -> Path | None:
    """The directory of initdb and postgres; none where PostgreSQL is not installed."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(_DEBIAN.glob("*/bin"), reverse=True) if _DEBIAN.is_dir() else []
    return next((p for p in places if (p / "initdb").exists() and (p / "postgres").exists()), None)


class PrivatePostgres:
    """A server of its own in a temporary directory, reached by a socket in it."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._directory = Path(tempfile.mkdtemp(prefix="secateur-pg-"))
        self._account = _account()
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        if self._account:
            os.chown(self._directory, int(self._account["user"]), int(self._account["group"]))
        options = ["--auth=trust", "--username=secateur", "--no-sync", "--no-locale", "--encoding=UTF8"]
        command = [str(binaries / "initdb"), *options, str(self._directory / "data")]
        subprocess.run(command, check=True, capture_output=True, cwd="/", **self._account)
        self.start()

    def start(self) -> None:
        """Returns once it answers."""
        settings = [
            "listen_addresses=",
            "fsync=off",
            "max_connections=20",
            f"unix_socket_directories={self._directory}",
        ]
        command = [*_ends_with_us(), str(self._binaries / "postgres"), "-D", str(self._directory / "data")]
        command += [part for setting in settings for part in ("-c", setting)]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            **self._account,
        )
        ready = [str(self._binaries / "pg_isready"), "-q", "-h", str(self._directory), "-d", "postgres"]
        while subprocess.run(ready, check=False, cwd="/").returncode:
            assert self._process.poll() is None, "PostgreSQL did not start"

    def stop(self) -> None:
        """At once, connections or not."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    def freeze(self, frozen: bool) -> None:
        """The server neither answers nor closes anything; its backends, which are sessions of their own, included."""
        assert self._process is not None
        number = signal.SIGSTOP if frozen else signal.SIGCONT
        for pid in (self._process.pid, *_children(self._process.pid)):
            os.kill(pid, number)

    def new_database(self) -> str:
        """The URL of an empty database."""
        import psycopg

        name = f"test{next(self._numbers)}"
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql:///{name}?host={self._directory}&user=secateur"

    def close(self) -> None:
        with contextlib.suppress(AssertionError):
            self.stop()
        shutil.rmtree(self._directory)


def _ends_with_us() -> list[str]:
    """Before a command: it is stopped also where this process is killed and can tidy up nothing."""
    return ["setpriv", "--pdeathsig", "QUIT"] if shutil.which("setpriv") else []


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _account() -> dict[str, Any]:
    """How to run a process as somebody else than root; nothing to do for anybody else."""
    if os.geteuid() != 0:
        return {}
    for name in _ACCOUNTS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError("need an account other than root to run PostgreSQL")


class PrivateS3:
    """moto's S3 over HTTP on a free port of this machine; what it holds survives `stop` and `start`."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self._app: Any = DomainDispatcherApplication(create_backend_app)
        self._port = 0
        self._numbers = itertools.count()
        self.start()
        create = urllib.request.Request(f"{self.endpoint}/{_BUCKET}", method="PUT")
        urllib.request.urlopen(create).read()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        from werkzeug.serving import WSGIRequestHandler, make_server

        class OneRequest(WSGIRequestHandler):
            """One request for each connection, so that nobody is served after `stop`."""

            protocol_version = "HTTP/1.0"

            def log(self, type: str, message: str, *args: Any) -> None: ...

        self._server = make_server("127.0.0.1", self._port, self._app, threaded=True, request_handler=OneRequest)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def new_bucket(self) -> str:
        """A URL under which there is nothing yet."""
        return f"s3://{_BUCKET}/test{next(self._numbers)}"

    def damage(self, suffix: str) -> None:
        """Change the bytes of the objects whose names end so, behind the store's back."""
        from moto.s3.models import s3_backends

        for backend in s3_backends["123456789012"].values():
            for key in list(backend.buckets[_BUCKET].keys.values()):
                if key.name.endswith(suffix):
                    key.value = b"damaged" + key.value[7:]


@contextmanager
def s3_credentials() -> Iterator[None]:
    """What the S3 library reads; moto takes any."""
    stated = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    before = {name: os.environ.get(name) for name in stated}
    os.environ.update(stated)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass
class Setup:
    """Opens stores on one directory, database and bucket; `down` and `up` are of the remote parts, if there are any."""

    directory: Path
    settings: dict[str, Any]
    outages: list[tuple[Callable[[], None], Callable[[], None]]]
    opened: list[KeyStore] = field(default_factory=list)

    def open(self, directory: str = "keys", **changes: Any) -> KeyStore:
        store = KeyStore(self.directory / directory, KeysConfig(**{**self.settings, **changes}))
        self.opened.append(store)
        return store

    def reopen(self, **changes: Any) -> KeyStore:
        self.close()
        return self.open(**changes)

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()


def make_setup(request: pytest.FixtureRequest, tmp_path: Path, database: str, blobs: str) -> Setup:
    settings: dict[str, Any] = {}
    outages: list[tuple[Callable[[], None], Callable[[], None]]] = []
    if database == "postgres":
        server: PrivatePostgres = request.getfixturevalue("postgres")
        settings["database"] = server.new_database()
        outages.append((server.stop, server.start))
    if blobs == "s3":
        bucket: PrivateS3 = request.getfixturevalue("s3")
        settings |= {"bucket": bucket.new_bucket(), "bucket_endpoint": bucket.endpoint}
        outages.append((bucket.stop, bucket.start))
    return Setup(tmp_path, settings, outages)


def offer(data: bytes, params: str = PARAMS) -> UploadOffer:
    return UploadOffer(params, spec_digest(), len(data), sha256(data))


def begun(store: KeyStore, data: bytes) -> str:
    upload = store.create(offer(data))
    assert isinstance(upload, UploadInfo)
    return upload.upload_id


def stored(store: KeyStore, data: bytes = KEYS) -> KeySetInfo:
    return store.commit(store.complete(begun_whole(store, data)))


def begun_whole(store: KeyStore, data: bytes) -> str:
    upload_id = begun(store, data)
    store.append(upload_id, 0, data)
    return upload_id


def reason(call: Callable[[], object]) -> Reason:
    """Why a call was refused."""
    with pytest.raises(SecateurError) as caught:
        call()
    return caught.value.reason


def blobs(store: KeyStore) -> list[str]:
    """The names of all stored blobs, without their prefix, in order."""
    return sorted(name.rpartition("/")[2] for name in store._blobs.names())
