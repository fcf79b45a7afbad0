"""Networks that demo and benchmarks train once and keep."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .output import say

if TYPE_CHECKING:
    from he_runtime import CompressedModel
    from model_prep.data import Dataset

__all__ = ["data_of", "identity", "kept", "trained"]


def trained(recipe: str, cache: Path | None, data: Path | None = None) -> CompressedModel:
    """The network of a recipe: from the cache when this recipe, code and data made it before, else trained now.

    `cache` None is the user's cache directory, `data` None is SECATEUR_DATA.
    """
    from .compress import run_recipe

    stem = Path(recipe).stem
    return kept(stem, _identity(recipe, data), cache, lambda: run_recipe(recipe, data=data))


def kept(name: str, digest: str, cache: Path | None, make: Callable[[], CompressedModel]) -> CompressedModel:
    """The model `name` of this digest (`identity`) from the cache, else what `make` trains now, kept for the next time."""
    from he_runtime import CompressedModel
    from he_runtime.errors import ModelError

    directory = _cache_directory(cache) / f"{name}-{digest[:16]}"
    if directory.exists():
        try:
            model = CompressedModel.load(directory)
            say(f"reusing the network in {directory}")
            return model
        except ModelError as error:
            say(f"training again: {error.message}")
    say(f"training and compressing {name} (kept for the next time) ...")
    started = time.monotonic()
    model = make()
    model.save(directory)
    say(f"trained in {time.monotonic() - started:.0f} s")
    return model


def data_of(recipe: str, data: Path | None = None) -> Dataset:
    """The data set that a recipe trains and tests on."""
    from model_prep import Recipe
    from model_prep.data import load

    from .artifacts import find_recipe

    return load(Recipe.load(find_recipe(recipe)).dataset, data)


def _cache_directory(chosen: Path | None) -> Path:
    if chosen is not None:
        return chosen
    from platformdirs import user_cache_path

    return user_cache_path("secateur")


def _identity(recipe: str, data: Path | None) -> str:
    """A digest of all that decides the trained weights: the recipe, the code, and which data there are."""
    from .artifacts import find_recipe

    return identity(data_of(recipe, data).name.encode(), find_recipe(recipe).read_bytes())


def identity(*parts: bytes) -> str:
    """A digest (hex) of `parts` and of the code that trains: of all its packages, and of what they plan with."""
    import he_runtime
    import model_prep

    hasher = hashlib.sha256()
    code = [file for package in (model_prep, he_runtime) for file in sorted(Path(package.__path__[0]).rglob("*.py"))]
    for part in (*parts, *(file.read_bytes() for file in code)):
        hasher.update(part)
    return hasher.hexdigest()
