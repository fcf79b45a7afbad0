"""`secateur compress` interrupted and called again: no finished step runs twice, and the model is the same."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_runtime import CompressedModel
from he_runtime.errors import InputError, ModelError, Reason
from model_prep.methods import DiagonalClasses
from secateur import compress_steps
from secateur.version_directory import new_version, written
from server.models import checksums

PNG = b"\x89PNG\r\n"
ROW = {"step": 1, "name": "quadratics", "accuracy": 0.9, "logit_rms_change": 0.1, "nonzeros": 7, "predicted_ms": 2.5}


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.fixture(scope="module")
def trained(recipe: Path, cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of models in which a compression was interrupted as it planned, after its last step."""
    models = tmp_path_factory.mktemp("interrupted") / "models"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secateur.artifacts.dense_counts", failing(KeyboardInterrupt()))
        said = cli("compress", recipe, "--out", models)
    assert said.code != 0 and said.err.endswith("planning ...\n")
    return models


@pytest.fixture
def models(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "models"))


def test_an_interrupted_compression_goes_on(
    made: Any, recipe: Any, ask: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: DiagonalClasses, stage: Any) -> None:
        raise KeyboardInterrupt

    unfinished = tmp_path / "models" / ".tiny-1.unfinished"
    with monkeypatch.context() as patch:
        patch.setattr(DiagonalClasses, "apply", killed)
        said = cli("compress", recipe)
    assert said.code != 0 and "step 2 of 3: diagonals" in said.err
    assert len(list(unfinished.glob("*.state"))) == 2
    said = cli("compress", recipe)
    assert said.code == 0
    assert "going on after step 1 of 3" in said.err and "step 1 of 3: quadratics" not in said.err
    assert not unfinished.exists()
    model = CompressedModel.load(tmp_path / "models" / "tiny" / "1")
    whole = CompressedModel.load(made.directory)
    assert set(model.arrays) == set(whole.arrays)
    assert all(np.array_equal(model.arrays[k], whole.arrays[k]) for k in whole.arrays)
    for word in ("0 teacher", "1 quadratics", "2 diagonals", "3 integers", "non-zeros", "predicted ms", "steps.png"):
        assert word in said.out


def test_restart_forgets_the_finished_steps(
    recipe: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: DiagonalClasses, stage: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DiagonalClasses, "apply", killed)
    cli("compress", recipe)
    again = cli("compress", recipe, "--restart")
    assert "going on" not in again.err and "step 1 of 3: quadratics" in again.err


def test_every_step_has_a_row(made: Any) -> None:
    record = made.record
    rows = record["steps"]
    assert [(row["step"], row["name"]) for row in rows] == [
        (0, "teacher"), (1, "quadratics"), (2, "diagonals"), (3, "integers"),
    ]  # fmt: skip
    assert record["resumed_after"] is None
    metadata = record["metadata"]
    for row in rows:
        assert row["accuracy"] == pytest.approx(metadata["accuracy"][row["name"]], abs=1e-6)
    for row in rows[1:]:
        assert row["logit_rms_change"] == pytest.approx(metadata["logit_rms_change"][row["name"]])
    assert rows[0]["predicted_ms"] is None and "activations" in rows[0]["why"]
    assert rows[0]["nonzeros"] == rows[1]["nonzeros"] > rows[2]["nonzeros"] == metadata["steps"][1]["nonzeros"]
    assert rows[1]["predicted_ms"] > rows[2]["predicted_ms"]
    assert Path(record["picture"]).read_bytes().startswith(PNG)


def test_without_two_prices_there_is_no_picture(tmp_path: Path) -> None:
    row = {"step": 0, "name": "teacher", "accuracy": 0.9, "predicted_ms": None}
    assert compress_steps.write_steps_png([row, {**row, "predicted_ms": 3.0}], "t", tmp_path / "x.png") is False
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("where", ["save_plan", "seal"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_stops_after_the_last_step_repeats_none(
    error: BaseException, where: str, models: Path, made: Any, recipe: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(f"secateur.artifacts.{where}", failing(error))
        said = cli("compress", recipe)
    assert said.code != 0 and list(models.rglob("*/1/*")) == []
    if isinstance(error, OSError):
        assert "cannot write models/tiny/1: got No space left on device" in said.err and "goes on" in said.err
    said = cli("compress", recipe)
    assert said.code == 0 and "going on after step 3 of 3" in said.err and "step 3 of 3: integers" not in said.err
    assert [path.relative_to(models).as_posix() for path in models.glob("*/*")] == ["tiny/1"]
    assert sorted(path.name for path in models.iterdir()) == ["tiny"]
    assert (
        CompressedModel.load(models / "tiny" / "1").arrays.keys() == CompressedModel.load(made.directory).arrays.keys()
    )


def test_an_old_version_stays_until_the_new_one_is_there(
    models: Path, recipe: Any, ask: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = models / "tiny" / "1"
    old.mkdir(parents=True)
    (old / "old.txt").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr("secateur.artifacts.seal", failing(KeyboardInterrupt()))
        assert cli("compress", recipe, "--overwrite").code != 0
    assert [path.name for path in old.iterdir()] == ["old.txt"]
    record = ask("compress", recipe, "--overwrite")
    assert record["resumed_after"] == 3 and record["directory"] == "models/tiny/1"
    assert record["picture"] == "models/tiny/1/steps.png" and Path(record["picture"]).is_file()
    assert checksums.read_list(old) == checksums.file_digests(old), "sealed, and nothing of the old version in it"
    assert not any(b".writing" in path.read_bytes() for path in old.rglob("*") if path.is_file())
    assert [path.name for path in old.parent.iterdir()] == ["1"]


def test_what_a_killed_run_left_is_put_right(tmp_path: Path) -> None:
    """Whichever rename it was killed before: the old version is back, and of the new one nothing is left but its place."""
    target = tmp_path / "m" / "1"
    draft, old = (target.with_name(f".1.{end}") for end in ("writing", "replaced"))
    for directory in (draft, old):
        directory.mkdir(parents=True)
        (directory / directory.name).touch()
    with pytest.raises(InputError, match="it is there already"):
        new_version(tmp_path, "m", "1")
    assert [path.name for path in target.iterdir()] == [old.name] and not old.exists()
    assert new_version(tmp_path, "m", "1", overwrite=True) == target
    old.mkdir()  # killed after both renames
    with written(target, overwrite=True) as place:
        assert place == draft and list(draft.iterdir()) == []
        (place / "new").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["m", "m/1", "m/1/new"]


@pytest.mark.parametrize(
    ("stuck", "kept"), [([".1.writing"], "1"), ([".1.writing", ".1.replaced"], ".1.replaced")], ids=["new", "both"]
)
def test_a_version_that_cannot_take_its_place(
    stuck: list[str], kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m" / "1"
    target.mkdir(parents=True)
    (target / "old").touch()
    with pytest.raises(InputError, match="it is there already"), written(target):
        pytest.fail("nothing is written")
    rename = Path.rename

    def refusing(self: Path, to: Path) -> Path:
        if self.name in stuck:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(ModelError, match="got Input/output error") as caught, written(target, overwrite=True) as place:
        (place / "new").touch()
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    left = sorted(path.relative_to(target.parent).as_posix() for path in target.parent.rglob("*"))
    assert left == [kept, f"{kept}/old"], "the old version is never lost"


def test_a_version_that_is_a_link_is_replaced_and_what_it_shows_is_kept(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name, shown in (("1", "elsewhere"), ("2", "nowhere")):
        target = tmp_path / "m" / name
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(tmp_path / shown)
        with written(target, overwrite=True) as place:
            (place / "new").touch()
        assert not target.is_symlink() and (target / "new").is_file()
    assert (tmp_path / "elsewhere").is_dir()
    assert sorted(os.listdir(tmp_path / "m")) == ["1", "2"]


def test_a_damaged_row_is_left_out(models: Path, recipe: Any, ask: Any) -> None:
    rows = sorted(
        (models / ".tiny-1.unfinished").glob("*.json"), key=lambda path: int(json.loads(path.read_text())["step"])
    )
    assert len(rows) == 4
    rows[1].write_text('{"step": 1}')
    rows[2].write_text(rows[3].read_text())  # of another step
    record = ask("compress", recipe)
    assert [row["name"] for row in record["steps"]] == ["teacher", "integers"] and record["resumed_after"] == 3


@pytest.mark.parametrize("key", ROW)
@pytest.mark.parametrize(
    "value",
    ["absent", "text", [], {}, True, -1, float("nan"), 10**400],
    ids=["absent", "text", "list", "table", "true", "negative", "nan", "huge"],
)
def test_a_row_is_whole_or_none(key: str, value: Any, tmp_path: Path) -> None:
    row = {k: v for k, v in (ROW | {key: value}).items() if v != "absent"}
    path = tmp_path / "row.json"
    path.write_text(json.dumps(row))
    assert compress_steps._read(path, 1) == (row if key == "name" and value == "text" else None)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "3", "[" * 100_000, '{"step": 1', json.dumps(ROW | {"why": 3})],
    ids=["empty", "null", "list", "number", "deep", "cut", "reason"],
)
def test_a_file_that_is_no_row(text: str, tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    assert compress_steps._read(path, 1) is None, "there is none"
    path.write_text(text)
    assert compress_steps._read(path, 1) is None


def test_a_row_without_a_price_is_whole(tmp_path: Path) -> None:
    row = ROW | {"logit_rms_change": None, "predicted_ms": None, "why": "it does not fit"}
    (tmp_path / "row.json").write_text(json.dumps(row))
    assert compress_steps._read(tmp_path / "row.json", 1) == row
