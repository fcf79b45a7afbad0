"""What an operator can say about the model repository."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RepositoryConfig"]


@dataclass(frozen=True)
class RepositoryConfig:
    """Which versions are served, and when the directory `models` is looked at again."""

    poll_seconds: float = 0.0  # look for new versions this often; 0: only at the start and by the admin service
    keep_versions: int = 3  # of each model: the newest ones, for clients that hold keys for an older one
    require_checksums: bool = False  # refuse a version without a SHA256SUMS file
