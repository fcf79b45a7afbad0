"""Digests of model versions, and the private copies that are served."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from he_runtime.errors import ModelError, Reason
from server.models import checksums
from server.models.snapshots import Snapshots


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version of two files, and a hidden one that belongs to no model."""
    directory = tmp_path / "models" / "digits" / "1"
    (directory / "plan").mkdir(parents=True)
    (directory / "model.json").write_text("{}")
    (directory / "plan" / "plan.json").write_text("plan")
    (directory / ".DS_Store").write_text("noise")
    return directory


def test_the_list_is_what_sha256sum_checks(version: Path) -> None:
    digests = checksums.write_list(version)
    assert set(digests) == {"model.json", "plan/plan.json"}
    assert subprocess.run(["sha256sum", "--strict", "--status", "-c", checksums.LIST], cwd=version).returncode == 0
    assert checksums.read_list(version) == digests == checksums.file_digests(version)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: (d / "model.json").write_text("{ }"), "other bytes in 'model.json'"),
        (lambda d: (d / "plan" / "plan.json").unlink(), "no file 'plan/plan.json'"),
        (lambda d: (d / "extra").write_text(""), "a file 'extra'"),
        (lambda d: (d / checksums.LIST).write_text("nonsense\n"), "need lines of"),
        (lambda d: (d / checksums.LIST).write_bytes(b"\xff"), "cannot read SHA256SUMS"),
    ],
)
def test_whatever_differs_from_the_list_is_named(version: Path, change: object, named: str) -> None:
    checksums.write_list(version)
    change(version)  # type: ignore[operator]
    with pytest.raises(ModelError, match=named):
        checksums.checked(version, checksums.file_digests(version), required=False)


def test_a_list_may_be_required(version: Path) -> None:
    digests = checksums.file_digests(version)
    checksums.checked(version, digests, required=False)
    with pytest.raises(ModelError, match="require_checksums") as caught:
        checksums.checked(version, digests, required=True)
    assert caught.value.reason is Reason.DIGEST_MISMATCH


def test_the_digest_covers_names_and_contents(version: Path) -> None:
    digests = checksums.file_digests(version)
    swapped = dict(zip(digests, reversed(list(digests.values())), strict=True))
    renamed = {f"{name}2": digest for name, digest in digests.items()}
    assert len({checksums.list_digest(d) for d in (digests, swapped, renamed)}) == 3


def test_a_directory_with_too_many_files_is_no_model(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "_MAX_FILES", 1)
    with pytest.raises(ModelError, match="more than 1 files"):
        checksums.tree(version)


def test_a_copy_does_not_change_with_its_source(tmp_path: Path, version: Path) -> None:
    snapshots = Snapshots(tmp_path / "state")
    copy = snapshots.take(version)
    (version / "model.json").write_text("tampered")
    assert (copy / "model.json").read_text() == "{}" and (copy / "plan" / "plan.json").read_text() == "plan"
    assert not (copy / ".DS_Store").exists()
    other = snapshots.take(version)
    assert other != copy and (other / "model.json").read_text() == "tampered"


def test_equal_versions_share_a_copy_and_a_torn_one_is_made_again(tmp_path: Path, version: Path) -> None:
    snapshots = Snapshots(tmp_path / "state")
    copy = snapshots.take(version)
    (copy / "model.json").write_text("to")  # as after a crash, or by somebody's hand
    assert snapshots.take(version) == copy and (copy / "model.json").read_text() == "{}"
    assert [p.name for p in (tmp_path / "state").iterdir()] == [copy.name], "no part is left behind"


def test_a_refused_version_leaves_nothing(tmp_path: Path, version: Path) -> None:
    checksums.write_list(version)
    (version / "model.json").write_text("tampered")
    snapshots = Snapshots(tmp_path / "state")
    with pytest.raises(ModelError, match="SHA256SUMS"):
        snapshots.take(version)
    assert list((tmp_path / "state").iterdir()) == []


def test_a_sweep_removes_what_is_not_used(tmp_path: Path, version: Path) -> None:
    snapshots = Snapshots(tmp_path / "state")
    old = snapshots.take(version)
    (version / "model.json").write_text("new")
    new = snapshots.take(version)
    snapshots.remove(old, {old})
    assert old.is_dir(), "another version is the same"
    snapshots.sweep({new})
    assert not old.exists() and new.is_dir()
    snapshots.remove(new, set())
    assert not new.exists()
