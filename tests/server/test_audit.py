"""The audit log: what is in it and what is not, that tampering is found, and what a full disk does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from full_disk import Disk

from server.errors import ConfigError
from server.identity import audit_chain
from server.identity.audit import AuditLog
from server.identity.audit_chain import Link, files_of, verify
from server.identity.settings import AuditConfig


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[Callable[..., AuditLog]]:
    opened: list[AuditLog] = []

    def open_one(**changes: Any) -> AuditLog:
        opened.append(AuditLog(tmp_path / "audit", replace(AuditConfig(), **changes)))
        return opened[-1]

    yield open_one
    for log in opened:
        log.close()


def written(log: AuditLog, count: int) -> None:
    for future in [log.record("Service/Method", number=str(i)) for i in range(count)]:
        future.result(10)


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in files_of(directory) for line in path.read_text().splitlines()]


def test_a_log_is_whole_over_restarts_and_rotation(audit: Callable[..., AuditLog], tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    for _ in range(3):
        log = audit(max_bytes=2000, max_files=1000)
        for _ in range(20):
            written(log, 1)
        log.close()
    found = verify(directory)
    assert (found.problems, found.first, found.records) == ([], 1, 63), "three openings too"
    assert len(files_of(directory)) > 5
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files_of(directory))
    assert directory.stat().st_mode & 0o777 == 0o700
    assert found.last == audit_chain.read_head(directory)


def test_old_files_are_removed_and_the_rest_still_verifies(audit: Callable[..., AuditLog], tmp_path: Path) -> None:
    log = audit(max_bytes=500, max_files=3)
    for _ in range(30):
        written(log, 1)
    log.close()
    found = verify(tmp_path / "audit")
    assert found.problems == [] and found.first > 20 and len(files_of(tmp_path / "audit")) == 3


def _edit(change: Callable[[list[str]], list[str] | None]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        path = files_of(directory)[1]
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(change(lines) or lines))

    return apply


def _alter(lines: list[str], old: str, new: str) -> list[str]:
    assert old in lines[1]
    return [lines[0], lines[1].replace(old, new, 1), *lines[2:]]


def _rehash(lines: list[str]) -> list[str]:
    """What a careful forger does: the altered line has the right hash of its own."""
    record = {**json.loads(lines[1]), "tenant": "somebody else"}
    record.pop("hash")
    line, _ = audit_chain.linked(Link(record.pop("seq") - 1, record.pop("prev")), record)
    return [lines[0], line + "\n", *lines[2:]]


TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a letter": (_edit(lambda lines: _alter(lines, "Service", "service")), "altered"),
    "a space": (_edit(lambda lines: _alter(lines, ",", ", ")), "altered"),
    "a line altered with its hash": (_edit(_rehash), "does not follow"),
    "a line removed": (_edit(lambda lines: [lines[0], *lines[2:]]), "some were removed"),
    "a line twice": (_edit(lambda lines: [lines[0], lines[0], *lines[1:]]), "some were removed"),
    "lines swapped": (_edit(lambda lines: [lines[1], lines[0], *lines[2:]]), "some were removed"),
    "rubbish": (_edit(lambda lines: [lines[0], "[" * 5000 + "\n", *lines[2:]]), "not a record"),
    "a file removed": (lambda directory: files_of(directory)[1].unlink(), "some were removed"),
    "the last file removed": (lambda directory: files_of(directory)[-1].unlink(), "is missing"),
    "the last line removed": (lambda directory: _cut_last(files_of(directory)[-1]), "is missing"),
}


def _cut_last(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize("name", TAMPERED)
def test_tampering_is_found(audit: Callable[..., AuditLog], tmp_path: Path, name: str) -> None:
    log = audit(max_bytes=1200, max_files=1000)
    for _ in range(20):
        written(log, 1)
    log.close()
    directory = tmp_path / "audit"
    assert verify(directory).problems == []
    change, said = TAMPERED[name]
    change(directory)
    assert any(said in problem for problem in verify(directory).problems), verify(directory).problems
    audit(max_files=1000).close()  # a server that goes on does not cover it up
    assert verify(directory).problems


def test_a_noted_record_shows_that_a_whole_log_was_replaced(audit: Callable[..., AuditLog], tmp_path: Path) -> None:
    log = audit()
    written(log, 5)
    log.close()
    noted = verify(tmp_path / "audit").last
    assert verify(tmp_path / "audit", noted).problems == []
    for path in (tmp_path / "audit").iterdir():
        path.unlink()
    log = audit()
    written(log, 9)
    log.close()
    assert verify(tmp_path / "audit").problems == []
    assert any("noted elsewhere" in p for p in verify(tmp_path / "audit", noted).problems)
    assert any("missing" in p for p in verify(tmp_path / "audit", Link(99, "0" * 64)).problems)


def test_a_line_that_a_crash_tore_is_cut_and_told(audit: Callable[..., AuditLog], tmp_path: Path) -> None:
    log = audit()
    written(log, 2)
    log.close()
    with files_of(tmp_path / "audit")[0].open("a") as file:
        file.write('{"action":"half')
    audit().close()
    assert verify(tmp_path / "audit").problems == []
    assert records(tmp_path / "audit")[-1]["torn_bytes"] == "15"


def test_two_servers_do_not_share_a_log(audit: Callable[..., AuditLog]) -> None:
    audit()
    with pytest.raises(ConfigError, match="another server"):
        audit()


def test_a_full_disk_loses_records_counts_them_and_leaves_no_half_line(
    audit: Callable[..., AuditLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, log = Disk(monkeypatch), audit()
    written(log, 1)
    disk.full = True
    for _ in range(3):
        with pytest.raises(OSError, match="cannot be written"):
            log.record("Service/Method").result(10)
    disk.full = False
    written(log, 1)
    log.close()
    assert verify(tmp_path / "audit").problems == []
    assert [(r["action"], r.get("records")) for r in records(tmp_path / "audit")][-2:] == [
        ("audit.lost", 3),
        ("Service/Method", None),
    ]


def test_a_caller_who_stops_waiting_does_not_stop_the_log(
    audit: Callable[..., AuditLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, log = Disk(monkeypatch), audit()
    disk.may_write.clear()
    given_up = [log.record("Service/Method", number=str(i)) for i in range(3)]
    assert given_up[-1].cancel(), "as asyncio does for a call that is cancelled"
    disk.may_write.set()
    written(log, 1)
    log.close()
    assert sum(r["action"] == "Service/Method" for r in records(tmp_path / "audit")) == 4


def test_a_flood_of_refused_calls_pushes_nothing_else_out(audit: Callable[..., AuditLog], tmp_path: Path) -> None:
    log = audit(max_refusals_per_second=5.0)
    for _ in range(1000):
        log.record("Service/Method", outcome="UNAUTHENTICATED").result(10)
    log.record("Service/Method", outcome="OK").result(10)
    log.close()
    found = records(tmp_path / "audit")
    one_by_one = sum(r.get("outcome") == "UNAUTHENTICATED" for r in found)
    counted = sum(r["records"] for r in found if r["action"] == "audit.refused")
    assert one_by_one + counted == 1000 and 5 <= one_by_one < 100


def run(*arguments: str) -> tuple[int, str]:
    from typer.testing import CliRunner

    from secateur.main import app

    result = CliRunner().invoke(app, ["audit", "verify", *arguments])
    return result.exit_code, result.output


def test_the_command_says_whether_a_log_is_whole(audit: Callable[..., AuditLog], tmp_path: Path) -> None:
    log = audit(max_bytes=1200, max_files=1000)
    for _ in range(20):
        written(log, 1)
    log.close()
    directory = str(tmp_path / "audit")
    code, said = run(directory, "--json")
    record = json.loads(said)
    assert (code, record["ok"], record["records"], record["first"]) == (0, True, 21, 1)
    code, said = run(directory, "--expect", f"{record['last']}:{record['hash']}")
    assert code == 0 and "21 records, 1 to 21: whole" in said
    assert run(directory, "--expect", f"21:{'0' * 64}")[0] == 1
    TAMPERED["a line removed"][0](Path(directory))
    code, said = run(directory)
    assert code == 1 and "some were removed" in said
    assert run(directory, "--expect", "x")[0] == 2 and run(str(tmp_path))[0] == 2
