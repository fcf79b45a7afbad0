"""Recipes, model directories and plans as the commands find and leave them on disk."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from he_runtime import CompressedModel, Plan

__all__ = [
    "PLAN",
    "dense_counts",
    "dense_twin",
    "find_recipe",
    "load_or_compile",
    "resealed",
    "save_plan",
    "seal",
    "short",
]

PLAN = "plan"  # the directory of a version's plan


def find_recipe(name: str) -> Path:
    """The path of a recipe: itself when it is a file, else one that ships with the project, by name.

    Raises InputError naming the recipes that there are.
    """
    from he_runtime.errors import InputError

    got = ""
    try:
        if Path(name).is_file():
            return Path(name)
    except OSError as error:  # a name that is too long for a file, a directory that may not be read
        got = f"got {error.strerror or error}, "
    checkout = Path(__file__).resolve().parent.parent / "recipes"
    installed = Path(sysconfig.get_path("data")) / "share" / "secateur" / "recipes"
    shipped = {path.stem: path for folder in (installed, checkout) for path in sorted(folder.glob("*.toml"))}
    if name not in shipped:
        known = ", ".join(sorted(shipped)) or "none found"
        raise InputError(
            f"cannot find recipe {short(name)!r}: {got}need a TOML file or one of: {known}; try digits-cnn"
        )
    return shipped[name]


def short(text: str) -> str:
    """A name as a message repeats it, so that a long one does not hide what is wrong with it."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def load_or_compile(directory: Path) -> Plan:
    """The plan in `directory` (a plan, or a model directory holding one), else the model there, planned now."""
    from he_runtime import CompressedModel, Plan, compile

    for candidate in (directory, directory / PLAN):
        if (candidate / "plan.json").exists():
            return Plan.load(candidate)
    return compile(CompressedModel.load(directory))


def save_plan(plan: Plan, dense: dict[str, int], version_directory: Path) -> None:
    """Write a plan below its model as a server reads it, and the dense counts that the server states beside its own."""
    plan.save(version_directory / PLAN)
    (version_directory / PLAN / "dense_counts.json").write_text(json.dumps(dense))


def seal(version_directory: Path) -> str:
    """Write SHA256SUMS, once everything else is there: servers refuse the version if a file then differs. Its digest."""
    from server.models.checksums import list_digest, write_list

    return list_digest(write_list(version_directory))


@contextmanager
def resealed(plan_directory: Path) -> Iterator[bool]:
    """Seal a version anew after its plan is written in the block; whether `plan_directory` is a version's plan.

    Raises ModelError before anything is written where a sealed version is not what its list states, which a new seal would hide.
    """
    from server.models.checksums import checked, file_digests

    version = plan_directory.resolve().parent
    is_version = plan_directory.resolve().name == PLAN and (version / "manifest.json").is_file()
    if is_version:
        checked(version, file_digests(version), required=False)
    yield is_version
    if is_version:
        seal(version)


def dense_counts(model: CompressedModel) -> dict[str, int]:
    """Operation counts of the same network with nothing pruned, planned alike; empty where that fits no parameters."""
    from he_runtime import compile
    from he_runtime.errors import DoesNotFit
    from he_runtime.plan.counts import leaf_totals

    try:
        return leaf_totals(compile(dense_twin(model)).counts)
    except DoesNotFit:
        return {}


def dense_twin(model: CompressedModel) -> CompressedModel:
    """`model` with every zero weight replaced by the smallest magnitude in its array: the same shapes, no sparsity."""
    import numpy as np

    arrays = dict(model.arrays)
    for node in model.nodes:
        key = node.arrays.get("weight")
        if key is not None:
            weight = model.arrays[key]
            present = np.abs(weight[weight != 0])
            arrays[key] = np.where(weight == 0, present.min() if present.size else 1, weight).astype(weight.dtype)
    return model.with_(arrays=arrays)
