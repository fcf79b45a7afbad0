"""The lines of the audit log: each holds the hash of the one before, so that a removed or altered one is found.

A line is canonical JSON with `seq` (1, 2, ...), `prev` (the hash of the line before; zeros at first) and `hash`, the
sha256 of the line without it. Files are named by their first `seq`. The chain alone cannot tell that lines at its very end
are missing: the file head.json names the last line that was written, and an operator may keep a copy of it elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["FIRST", "HEAD", "SHORT", "Link", "Verdict", "files_of", "linked", "read_head", "read_line", "verify"]

HEAD = "head.json"
SHORT = "audit.short"  # the action that a server records which finds fewer lines than head.json names
_MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Link:
    """A place in the chain: the number and hash of one line."""

    seq: int
    hash: str


FIRST = Link(0, "0" * 64)


@dataclass
class Verdict:
    """What `verify` found; the log is whole when `problems` is empty. `first` > 1 where old files were rotated away."""

    records: int = 0
    first: int = 0
    last: Link = FIRST
    problems: list[str] = field(default_factory=list)


def linked(before: Link, facts: Mapping[str, Any]) -> tuple[str, Link]:
    """The line that records `facts` after `before`, and its own place."""
    record = {**facts, "seq": before.seq + 1, "prev": before.hash}
    link = Link(before.seq + 1, _hash(record))
    return _canonical({**record, "hash": link.hash}), link


def read_line(line: str) -> tuple[dict[str, Any], Link]:
    """The record in a line and its place; ValueError when the line is not what its hash was made of."""
    record = json.loads(line)
    if not isinstance(record, dict) or _canonical(record) != line:
        raise ValueError("not a line of an audit log")
    stated, seq = record.pop("hash", None), record.get("seq")
    if not isinstance(seq, int) or stated != _hash(record):
        raise ValueError("altered")
    return record, Link(seq, str(stated))


def files_of(directory: Path) -> list[Path]:
    """The files of a log, oldest first."""
    return sorted(directory.glob("audit-*.jsonl"))


def read_head(directory: Path) -> Link | None:
    """The last line that a server says it wrote; None where it says nothing readable."""
    try:
        record = json.loads((directory / HEAD).read_text())
        return Link(int(record["seq"]), str(record["hash"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def verify(directory: Path, expected: Link | None = None) -> Verdict:
    """Read a whole log. `expected` is a line that must be in it, besides the one that head.json names.

    Raises OSError when the files cannot be read.
    """
    verdict = Verdict()
    wanted = {link.seq: link.hash for link in (read_head(directory), expected) if link is not None and link.seq > 0}
    for place, line in _lines(directory):
        if len(verdict.problems) >= _MAX_PROBLEMS:
            return verdict
        try:
            record, link = read_line(line)
        except (ValueError, RecursionError):
            verdict.problems.append(f"{place}: altered, or not a record")
            verdict.last = Link(verdict.last.seq + 1, "")
            continue
        _check_place(verdict, place, record, link)
        if wanted.pop(link.seq, link.hash) != link.hash:
            verdict.problems.append(f"{place}: record {link.seq} is not the one that was noted elsewhere")
        verdict.records, verdict.last = verdict.records + 1, link
    missing = [seq for seq in wanted if seq >= verdict.first]
    if missing:
        verdict.problems.append(f"the log ends with record {verdict.last.seq}: record {max(missing)} is missing")
    return verdict


def _check_place(verdict: Verdict, place: str, record: Mapping[str, Any], link: Link) -> None:
    if not verdict.records and not verdict.problems:
        verdict.first = link.seq
        if link.seq == 1 and record.get("prev") != FIRST.hash:
            verdict.problems.append(f"{place}: the first record follows another one")
    elif link.seq != verdict.last.seq + 1:
        verdict.problems.append(f"{place}: record {link.seq} follows record {verdict.last.seq}: some were removed")
    elif record.get("prev") != verdict.last.hash and verdict.last.hash:
        verdict.problems.append(f"{place}: record {link.seq} does not follow the one before it")
    if record.get("action") == SHORT:
        verdict.problems.append(f"{place}: a server found fewer records here than had been written")


def _lines(directory: Path) -> Iterator[tuple[str, str]]:
    for path in files_of(directory):
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, 1):
                yield f"{path.name}:{number}", line.removesuffix("\n")


def _canonical(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"))


def _hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(record).encode()).hexdigest()
