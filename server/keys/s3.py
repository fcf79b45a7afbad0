"""Key sets as objects of an S3-compatible store, with a local cache of files for the workers to read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .cache import FileCache
from .settings import KeysConfig
from .sql import store_down

__all__ = ["S3Blobs"]

_PART_BYTES = 8 << 20  # of a multipart upload; with _PARALLEL the memory that a commit takes
_PARALLEL = 2
_RETRIES: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=5)}
_CLIENT = {"connect_timeout": "3s", "timeout": "30s"}  # for one request, so for one part or range


class S3Blobs:
    """Objects <prefix>/<tenant>/<sha256>. Credentials come from the environment, as the library reads them.

    Uploads are multipart with a checksum for each part, which the store verifies; their size is checked before they are
    recorded, and their digest whenever they are fetched. ConfigError where obstore is missing.
    """

    def __init__(self, config: KeysConfig, cache: Path) -> None:
        try:
            from obstore.exceptions import BaseError
            from obstore.store import S3Store
        except ImportError:
            raise ConfigError(
                "cannot use keys.bucket: obstore is not installed; try pip install 'secateur[s3]'"
            ) from None
        self._failures = (BaseError, TimeoutError)
        bucket, _, prefix = config.bucket.removeprefix("s3://").partition("/")
        where: dict[str, Any] = {"endpoint": config.bucket_endpoint} if config.bucket_endpoint else {}
        client: Any = {**_CLIENT, "allow_http": config.bucket_endpoint.startswith("http://")}
        self._store: Any = S3Store(
            bucket,
            prefix=prefix.strip("/") or None,
            region=config.bucket_region,
            checksum_algorithm="sha256",
            client_options=client,
            retry_config=_RETRIES,
            **where,
        )
        self._cache = FileCache(cache, config.cache_bytes)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Errors of the library, whose texts name addresses, become one of ours. An absent object stays FileNotFoundError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except self._failures as error:
            raise store_down("object store") from error

    def send(self, part: Path, name: str) -> None:
        with self._reaching():
            self._store.put(name, part, use_multipart=True, chunk_size=_PART_BYTES, max_concurrency=_PARALLEL)

    def place(self, part: Path, name: str) -> None:
        """The object is there, unless it was deleted since it was sent: then the caller tries again."""
        size = part.stat().st_size
        with self._reaching():
            found = self._size(name)
        if found != size:
            raise store_down("object store", ", which lost or cut what was sent")

    def _size(self, name: str) -> int | None:
        try:
            return int(self._store.head(name)["size"])
        except FileNotFoundError:
            return None

    def restore(self, part: Path, name: str) -> None:
        """Nothing to undo: the part is where it was, and an object that nobody records is swept."""

    def local(self, name: str, sha256: str) -> Path:
        path = self._cache.get(name)
        if path is not None:
            return path
        with self._cache.fetching(name):
            path = self._cache.get(name)
            if path is None:
                with self._reaching():
                    path = self._cache.put(name, sha256, self._blocks(name))
            if path is None:  # damaged: of no use to anybody
                raise FileNotFoundError(name)
            return path

    def _blocks(self, name: str) -> Iterator[memoryview]:
        """An object in ranges, so that the time limit is one for each and not for the whole."""
        size = int(self._store.head(name)["size"])
        for start in range(0, size, _PART_BYTES):
            yield memoryview(self._store.get_range(name, start=start, length=min(_PART_BYTES, size - start)))

    def is_local(self, name: str) -> bool:
        return name in self._cache

    def exists(self, name: str) -> bool:
        with self._reaching():
            return self._size(name) is not None

    def delete(self, name: str) -> None:
        self._cache.drop(name)
        with self._reaching():
            self._store.delete(name)

    def names(self) -> Iterator[str]:
        with self._reaching():
            for page in self._store.list():
                yield from (str(entry["path"]) for entry in page)

    def check(self) -> None:
        """Any answer to a listing of at most one name."""
        with self._reaching():
            next(iter(self._store.list(chunk_size=1)), None)

    def close(self) -> None: ...
