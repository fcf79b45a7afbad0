"""The state after every finished step on disk, so that an interrupted compression goes on where it stopped.

A state is found again by all that decides it: recipe settings, data, the network before training, the code, and the
steps so far. Recipes that begin alike therefore share their first states. A state is a pickle, read back by an unpickler
that makes nothing but arrays, tensors and this project's own classes; it belongs in a directory of one's own and is no
format to pass on.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, from_numpy, nn

from he_runtime.errors import ModelError, Reason

from .methods import Method, table_of
from .recipe import Recipe
from .stage import Stage
from .watcher import Watcher

__all__ = ["Checkpoints"]

_GIVEN = {"name", "input_spec", "labels", "x", "y", "x_test", "y_test", "seed", "quiet"}  # made anew by every run
_NUMPY = {"ndarray", "dtype", "_reconstruct", "_frombuffer", "scalar"}
_FOREIGN = {("collections", "OrderedDict"), ("functools", "partial"), ("torch.nn.modules.container", "ParameterList")}


class Checkpoints(Watcher):
    """Keeps states in `directory`; `code` is a digest of the code that trains.

    `kept` says after each step whether its state is on the disk: one that holds what no pickle can is not kept, and a
    rerun starts from the step before. One that the disk does not take raises ModelError (STORE_UNAVAILABLE).
    """

    def __init__(self, directory: Path, code: str) -> None:
        self.directory, self.code = directory, code
        self.keys: list[str] = []  # of the states after 0, 1, ... steps
        self.kept = False

    def restore(self, stage: Stage, recipe: Recipe, steps: Sequence[Method]) -> int | None:
        self.keys = _keys(stage, recipe, steps, self.code)
        for number in reversed(range(len(self.keys))):
            path = self.path(number)
            if path.exists() and _loaded(path, stage):
                return number
        return None

    def done(self, name: str, number: int, total: int, stage: Stage) -> None:
        data = _dumped(stage)
        self.kept = data is not None
        if data is not None:
            write_whole(self.path(number), data)

    def path(self, number: int, suffix: str = ".state") -> Path:
        """The file of the state after `number` steps, or another beside it."""
        return self.directory / f"{self.keys[number]}{suffix}"

    def forget(self) -> None:
        """Remove every state, and the directory when nothing else is in it."""
        if not self.directory.is_dir():
            return
        for path in self.directory.iterdir():
            if path.suffix in (".state", ".json", ".part"):
                path.unlink()
        if not any(self.directory.iterdir()):
            self.directory.rmdir()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is either complete or not there; ModelError (STORE_UNAVAILABLE) where it cannot be written."""
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise ModelError(
            f"cannot write {path}: got {error.strerror or error}, need room and the right to write there; try again then: "
            "the steps that finished before stay",
            Reason.STORE_UNAVAILABLE,
        ) from error


def _keys(stage: Stage, recipe: Recipe, steps: Sequence[Method], code: str) -> list[str]:
    """One key (hex) per number of finished steps, from 0."""
    graph = stage.net.graph
    settings = {"seed": recipe.seed, "threads": recipe.threads, "teacher": asdict(recipe.teacher), "code": code}
    hasher = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    hasher.update(repr((graph.nodes, graph.output, stage.input_spec, stage.labels)).encode())
    for array in (*graph.arrays.values(), stage.x, stage.y, stage.x_test, stage.y_test):
        hasher.update(np.ascontiguousarray(array).tobytes())
    keys = [hasher.hexdigest()[:32]]
    for step in steps:
        hasher.update(json.dumps(table_of(step), sort_keys=True).encode())
        keys.append(hasher.hexdigest()[:32])
    return keys


def _dumped(stage: Stage) -> bytes | None:
    """The state of a stage; None where it holds what cannot be pickled."""
    stage.net.pre_activations = {}
    state = {f.name: getattr(stage, f.name) for f in fields(Stage) if f.name not in _GIVEN}
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, stage).dump(state)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return buffer.getvalue()


def _loaded(path: Path, stage: Stage) -> bool:
    """Put the state in a file into the stage; False, with the stage as it was, where the file is no state."""
    try:
        state = _Unpickler(io.BytesIO(path.read_bytes()), stage).load()
    except Exception:  # a damaged pickle may raise anything; the steps are then made anew
        return False
    if not isinstance(state, dict) or set(state) != {f.name for f in fields(Stage)} - _GIVEN:
        return False
    for name, value in state.items():
        setattr(stage, name, value)
    return True


class _Pickler(pickle.Pickler):
    """Tensors go as arrays, the stage itself as a mark."""

    def __init__(self, file: io.BytesIO, stage: Stage) -> None:
        super().__init__(file, protocol=5)
        self._stage = stage

    def persistent_id(self, obj: Any) -> str | None:
        return "stage" if obj is self._stage else None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return _tensor, (obj.detach().numpy(), isinstance(obj, nn.Parameter), obj.requires_grad)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, stage: Stage) -> None:
        super().__init__(file)
        self._stage = stage

    def persistent_load(self, pid: Any) -> Stage:
        return self._stage

    def find_class(self, module: str, name: str) -> Any:
        own = module.startswith(("model_prep.", "he_runtime.")) and "." not in name
        if own:
            found = super().find_class(module, name)
            if callable(found) and getattr(found, "__module__", None) == module:  # nothing that a module has imported
                return found
        elif (module, name) in _FOREIGN or (module.split(".")[0] == "numpy" and name in _NUMPY):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"cannot use {module}.{name}: need an array, a tensor or a class of this project")


def _tensor(values: npt.NDArray[Any], parameter: bool, requires_grad: bool) -> Tensor:
    tensor = from_numpy(np.array(values))
    return nn.Parameter(tensor, requires_grad=requires_grad) if parameter else tensor
