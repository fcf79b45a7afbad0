"""The digest of a model version: sha256 of every file in it, in the format that `sha256sum` writes and checks.

A version may carry such a list as the file SHA256SUMS. Where it does, exactly the listed files must be there, with these digests. The
digest of a version is that of the list, made anew from the files, so it covers names and contents.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from he_runtime.errors import ModelError, Reason

__all__ = ["LIST", "checked", "file_digests", "list_digest", "list_text", "read_list", "tree", "write_list"]

LIST = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_MAX_FILES = 10_000  # a directory with more is no model


def tree(directory: Path) -> list[Path]:
    """Every regular file below `directory` but the list and hidden ones, sorted, relative; ModelError for too many.

    Links to files are followed, because mounted volumes consist of them; what matters is the bytes that are read.
    """
    found = []
    for path in _walk(directory):
        found.append(path.relative_to(directory))
        if len(found) > _MAX_FILES:
            raise ModelError(f"cannot read a model version: got more than {_MAX_FILES} files; try its own directory")
    return sorted(p for p in found if p != Path(LIST))


def _walk(directory: Path) -> Iterator[Path]:
    for path in directory.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        elif path.is_file():
            yield path


def file_digests(directory: Path) -> dict[str, str]:
    """Relative path -> hexadecimal sha256, of every file of a version."""
    return {path.as_posix(): _hash(directory / path) for path in tree(directory)}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_text(digests: Mapping[str, str]) -> str:
    """The content of SHA256SUMS, sorted by name."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def list_digest(digests: Mapping[str, str]) -> str:
    """One digest for the whole version."""
    return hashlib.sha256(list_text(digests).encode()).hexdigest()


def write_list(directory: Path) -> dict[str, str]:
    """Write SHA256SUMS for the files that are there; returns the digests by name."""
    digests = file_digests(directory)
    (directory / LIST).write_text(list_text(digests))
    return digests


def read_list(directory: Path) -> dict[str, str] | None:
    """The digests that SHA256SUMS states, None where there is no such file; ModelError when it is malformed."""
    try:
        text = (directory / LIST).read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read {LIST}: {type(error).__name__}; try `secateur admin seal`") from error
    lines = [_LINE.fullmatch(line) for line in text.splitlines()]
    if not all(lines):
        raise ModelError(f"cannot read {LIST}: need lines of <sha256>  <name>; try `secateur admin seal`")
    return {match[2].removeprefix("./"): match[1] for match in lines if match}


def checked(directory: Path, digests: Mapping[str, str], *, required: bool) -> None:
    """Compare the digests of the files that are there with the stated ones.

    DIGEST_MISMATCH names the first file that differs, is missing or is not listed, and a list that is missing where it is required.
    """
    stated = read_list(directory)
    if stated is None:
        if required:
            raise _refused(f"got no {LIST}, which repository.require_checksums asks for")
        return
    for name in sorted(stated.keys() | digests.keys()):
        if name not in digests:
            raise _refused(f"got no file {name!r}, which {LIST} lists")
        if name not in stated:
            raise _refused(f"got a file {name!r} that {LIST} does not list")
        if stated[name] != digests[name]:
            raise _refused(f"got other bytes in {name!r} than {LIST} states")


def _refused(what: str) -> ModelError:
    return ModelError(
        f"cannot serve this version: {what}; try copying it again, or `secateur admin seal` if the change is meant",
        Reason.DIGEST_MISMATCH,
    )
