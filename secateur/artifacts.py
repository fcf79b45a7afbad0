"""Model directories, plans and recipes as the commands find them on disk."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from he_runtime import CompressedModel, Plan

__all__ = [
    "cache_directory",
    "dense_counts",
    "dense_twin",
    "find_recipe",
    "load_model",
    "load_or_compile",
    "save_version",
]

_PLAN = "plan"


def find_recipe(name: str) -> Path:
    """The path of a recipe: itself when it is a file, else one that ships with the project, by name.

    Raises InputError naming the recipes that there are.
    """
    from he_runtime.errors import InputError

    if Path(name).is_file():
        return Path(name)
    checkout = Path(__file__).resolve().parent.parent / "recipes"
    installed = Path(sysconfig.get_path("data")) / "share" / "secateur" / "recipes"
    shipped = {path.stem: path for folder in (installed, checkout) for path in sorted(folder.glob("*.toml"))}
    if name not in shipped:
        known = ", ".join(sorted(shipped)) or "none found"
        raise InputError(f"cannot find recipe {name!r}: need a TOML file or one of: {known}; try digits-cnn")
    return shipped[name]


def cache_directory(chosen: Path | None) -> Path:
    """`chosen`, or the user's cache directory for this project; made if absent."""
    if chosen is None:
        from platformdirs import user_cache_dir

        chosen = Path(user_cache_dir("secateur"))
    chosen.mkdir(parents=True, exist_ok=True)
    return chosen


def load_model(directory: Path) -> CompressedModel:
    """The compressed model in `directory`; ModelError where there is none."""
    from he_runtime import CompressedModel

    return CompressedModel.load(directory)


def load_or_compile(directory: Path) -> Plan:
    """The plan in `directory` (a plan, or a model directory holding one), else the model there, planned now."""
    from he_runtime import Plan, compile

    for candidate in (directory, directory / _PLAN):
        if (candidate / "plan.json").exists():
            return Plan.load(candidate)
    return compile(load_model(directory))


def dense_counts(model: CompressedModel) -> dict[str, int]:
    """Operation counts of the same network with nothing pruned, planned alike."""
    from he_runtime import compile
    from he_runtime.plan.counts import leaf_totals

    return leaf_totals(compile(dense_twin(model)).counts)


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


def save_version(model: CompressedModel, plan: Plan, root: Path, version: str) -> Path:
    """Write `root`/<name>/<version>/ as a server reads it: the model, the plan below it, and the dense counts there."""
    directory = root / model.name / version
    model.save(directory)
    plan.save(directory / _PLAN)
    (directory / _PLAN / "dense_counts.json").write_text(json.dumps(dense_counts(model)))
    return directory
