"""What an operator can say about the key store: budgets, lifetimes, and where metadata and bytes are kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import ConfigError

__all__ = ["KeysConfig"]

_GIB = 1 << 30
_DATABASES = ("postgresql://", "postgres://")


@dataclass(frozen=True)
class KeysConfig:
    """The key store. Sizes in bytes, times in seconds.

    `database` may hold a password and stays out of repr and logs; better leave it to PGPASSFILE. The credentials of a
    bucket are those of the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or the machine's role).
    """

    budget_bytes: int = 16 * _GIB  # committed key sets; the least recently used are evicted
    tenant_budget_bytes: int = 8 * _GIB  # of them for one tenant, who evicts only his own when over it
    upload_budget_bytes: int = 4 * _GIB  # reserved by uploads under way
    max_uploads: int = 64
    tenant_uploads: int = 32  # of them for one tenant
    upload_idle_seconds: float = 60.0  # an idle upload gives way to a new one after this
    upload_ttl_seconds: float = 86400.0  # and is forgotten after this
    ttl_seconds: float = 30 * 86400.0  # a key set that was not used for this long is deleted
    validate_on_commit: bool = True  # a worker parses the keys before they become visible
    min_free_bytes: int = 64 << 20  # with less space left on the disk the server is not ready
    database: str = field(default="", repr=False)  # postgresql://...; empty: SQLite in the state directory
    bucket: str = ""  # s3://bucket or s3://bucket/prefix; empty: files in the state directory
    bucket_endpoint: str = ""  # URL of an S3-compatible store that is not Amazon's
    bucket_region: str = "us-east-1"
    cache_bytes: int = 8 * _GIB  # local copies of what is in the bucket, for the workers to read

    def __post_init__(self) -> None:
        if self.database and not self.database.startswith(_DATABASES):
            raise ConfigError("cannot use keys.database: need a URL that begins with postgresql://, or none for SQLite")
        if self.bucket and not self.bucket.removeprefix("s3://").strip("/"):
            raise ConfigError(f"cannot use keys.bucket = {self.bucket!r}: need s3://bucket or s3://bucket/prefix")
        if self.bucket and not self.bucket.startswith("s3://"):
            raise ConfigError(f"cannot use keys.bucket = {self.bucket!r}: need a URL that begins with s3://")
