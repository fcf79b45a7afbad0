"""A compression that is killed goes on after its last finished step, and ends with the very arrays it would have made."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_runtime.errors import ModelError, Reason
from he_runtime.model import CompressedModel
from model_prep import Recipe, compress
from model_prep.checkpoints import Checkpoints, _Unpickler, write_whole
from model_prep.data import Dataset, load
from model_prep.methods import METHODS
from model_prep.stage import Stage

ONCE = {"epochs": 2}
RECIPE: dict[str, Any] = {
    "name": "short",
    "network": "digits-cnn",
    "teacher": ONCE,
    "steps": [
        {"method": "quadratics", "training": ONCE},
        {"method": "diagonals", "density": 0.5, "training": ONCE},
        {"method": "integers", "bits": 8, "training": ONCE},
    ],
}


class Killed(Exception):
    pass


class Killing(Checkpoints):
    """Dies when step `at` begins, and notes which steps began."""

    def __init__(self, directory: Path, at: int | None = None, code: str = "this") -> None:
        super().__init__(directory, code)
        self.at, self.began = at, list[int]()

    def begins(self, name: str, number: int, total: int) -> None:
        if number == self.at:
            raise Killed
        self.began.append(number)

    def done(self, name: str, number: int, total: int, stage: Stage) -> None:
        super().done(name, number, total, stage)
        assert self.kept, name


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits").subset(200, 40)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.from_dict(RECIPE)


@pytest.fixture(scope="module")
def uninterrupted(recipe: Recipe, digits: Dataset) -> CompressedModel:
    return compress(None, recipe, digits, quiet=True)


@pytest.fixture(scope="module")
def finished(recipe: Recipe, digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The states of a compression that ran to its end."""
    directory = tmp_path_factory.mktemp("states")
    compress(None, recipe, digits, quiet=True, watcher=Killing(directory))
    return directory


@pytest.fixture
def states(finished: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    return Path(shutil.copytree(finished, tmp_path / "states"))


def same(one: CompressedModel, other: CompressedModel) -> bool:
    return set(one.arrays) == set(other.arrays) and all(
        one.arrays[k].dtype == other.arrays[k].dtype and np.array_equal(one.arrays[k], other.arrays[k])
        for k in one.arrays
    )


@pytest.mark.parametrize("at", [1, 3])
def test_a_killed_compression_goes_on(
    at: int, recipe: Recipe, digits: Dataset, uninterrupted: CompressedModel, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        compress(None, recipe, digits, quiet=True, watcher=Killing(tmp_path, at))
    again = Killing(tmp_path)
    model = compress(None, recipe, digits, quiet=True, watcher=again)
    assert again.began == list(range(at, 4)), "finished steps do not run again"
    assert same(model, uninterrupted)
    expected = dict(uninterrupted.metadata)
    for key in ("accuracy", "logit_rms_change", "steps"):
        assert model.metadata[key] == expected[key], key
    again.forget()
    assert not list(tmp_path.parent.glob(f"{tmp_path.name}/*"))


def test_a_finished_one_repeats_no_step(
    recipe: Recipe, digits: Dataset, uninterrupted: CompressedModel, states: Path
) -> None:
    again = Killing(states, at=0)
    model = compress(None, recipe, digits, quiet=True, watcher=again)
    assert again.began == [] and same(model, uninterrupted)
    assert model.metadata["wall_seconds"] > 0


@pytest.mark.parametrize("change", ["data", "code", "seed", "teacher", "first step", "third step", "damage"])
def test_only_what_was_made_alike_is_used(change: str, recipe: Recipe, digits: Dataset, states: Path) -> None:
    table, code, first = recipe.to_dict(), "this", 0
    if change == "data":
        digits = digits.subset(199, 40)
    elif change == "code":
        code = "other"
    elif change == "seed":
        table["seed"] = 1
    elif change == "teacher":
        table["teacher"] = {"epochs": 3}
    elif change == "first step":
        table["steps"][0]["range_penalty"] = 2e-3
        first = 1
    elif change == "third step":
        table["steps"][2]["bits"] = 6
        first = 3
    else:
        for path in states.glob("*.state"):
            os.truncate(path, path.stat().st_size // 2)
    again = Killing(states, first + 1, code)
    with pytest.raises(Killed) if first < 3 else nullcontext():
        compress(None, Recipe.from_dict(table), digits, quiet=True, watcher=again)
    assert again.began[0] == first


def test_recipes_that_begin_alike_share_their_first_steps(digits: Dataset, states: Path) -> None:
    steps = [RECIPE["steps"][0], {"method": "magnitude", "density": 0.3, "training": ONCE}]
    other = Killing(states)
    renamed = Recipe.from_dict({**RECIPE, "name": "other", "steps": steps})
    model = compress(None, renamed, digits, quiet=True, watcher=other)
    assert other.began == [2] and model.name == "other"
    assert same(model, compress(None, renamed, digits, quiet=True))


def test_every_step_says_its_epochs(uninterrupted: CompressedModel) -> None:
    assert [step["epochs"] for step in uninterrupted.metadata["steps"]] == [2, 2, 2]


def test_a_state_that_cannot_be_kept_is_not(recipe: Recipe, digits: Dataset, tmp_path: Path) -> None:
    class Closing(Checkpoints):
        def done(self, name: str, number: int, total: int, stage: Stage) -> None:
            if number == 1:
                stage.penalty = lambda: stage.net.parameter("fc.bias").sum() * 0
            super().done(name, number, total, stage)
            assert self.kept == (number != 1 and number != 2)
            if number == 2:
                raise Killed

    with pytest.raises(Killed):
        compress(None, recipe, digits, quiet=True, watcher=Closing(tmp_path, "this"))
    again = Killing(tmp_path, 2)
    with pytest.raises(Killed):
        compress(None, recipe, digits, quiet=True, watcher=again)
    assert again.began == [1]


def test_a_full_disk_is_said_and_the_finished_steps_stay(
    recipe: Recipe, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, count = os.fsync, 0

    def filling(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        flushed(descriptor)

    monkeypatch.setattr(os, "fsync", filling)
    with pytest.raises(
        ModelError, match=r"cannot write .*\.state: got No space left on device, need .*; try .*steps .* stay"
    ) as caught:
        compress(None, recipe, digits, quiet=True, watcher=Killing(tmp_path))
    assert str(tmp_path) in caught.value.message and caught.value.reason is Reason.STORE_UNAVAILABLE
    assert [path.suffix for path in tmp_path.iterdir()] == [".state"], "no part of a file takes up room"
    again = Killing(tmp_path, 1)
    with pytest.raises(Killed):
        compress(None, recipe, digits, quiet=True, watcher=again)
    assert again.began == [], "the teacher stays"


def test_a_place_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"cannot write .*/file/x\.state: got"):
        write_whole(tmp_path / "file" / "x.state", b"")


@pytest.mark.parametrize(
    "made",
    [os.system, eval, np.load, Path, METHODS.get, "model_prep.data os", "model_prep.data os.system"],
    ids=["system", "eval", "load", "Path", "bound method", "name in another module", "dotted name"],
)
def test_nothing_but_data_comes_out_of_a_file(made: Any) -> None:
    data = f"c{made.replace(' ', chr(10))}\n.".encode() if isinstance(made, str) else pickle.dumps(made)
    with pytest.raises((pickle.UnpicklingError, AttributeError)):
        _Unpickler(io.BytesIO(data), None).load()  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
