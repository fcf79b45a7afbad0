"""Networks that demo and benchmarks train once and keep."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .output import say

if TYPE_CHECKING:
    from he_runtime import CompressedModel
    from model_prep.data import Dataset

__all__ = ["data_of", "trained"]


def trained(recipe: str, cache: Path | None, *, quiet: bool, data: Path | None = None) -> CompressedModel:
    """The network of a recipe: from the cache when this recipe, code and data made it before, else trained now.

    `cache` None is the user's cache directory, `data` None is SECATEUR_DATA.
    """
    from he_runtime import CompressedModel
    from he_runtime.errors import ModelError

    from .artifacts import cache_directory

    directory = cache_directory(cache) / f"{Path(recipe).stem}-{_identity(recipe, data)[:16]}"
    if directory.exists():
        try:
            model = CompressedModel.load(directory)
            say(f"reusing the network in {directory}")
            return model
        except ModelError as error:
            say(f"training again: {error.message}")
    say(f"training and compressing {Path(recipe).stem} (kept for the next time) ...")
    started = time.monotonic()
    model = _train(recipe, quiet, data)
    model.save(directory)
    say(f"trained in {time.monotonic() - started:.0f} s")
    return model


def data_of(model: CompressedModel, data: Path | None = None) -> Dataset:
    """The data set that `model` was made on."""
    from model_prep.data import load

    return load(model.metadata["recipe"]["dataset"], data)


def _identity(recipe: str, data: Path | None) -> str:
    """A digest of all that decides the trained weights: the recipe, the code, and which data there are."""
    import model_prep
    from model_prep import Recipe
    from model_prep.data import load

    from .artifacts import find_recipe

    path = find_recipe(recipe)
    hasher = hashlib.sha256(load(Recipe.load(path).dataset, data).name.encode())
    for file in (path, *sorted(Path(model_prep.__path__[0]).glob("*.py"))):
        hasher.update(file.read_bytes())
    return hasher.hexdigest()


def _train(recipe: str, quiet: bool, data: Path | None) -> CompressedModel:
    import torch

    from .compress import run_recipe

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # batches of small images: a second thread mostly waits for the first
    try:
        return run_recipe(recipe, quiet=quiet, data=data)
    finally:
        torch.set_num_threads(threads)
