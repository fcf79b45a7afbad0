"""`secateur compress`: run a recipe, and write a model directory that a server can serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import Json, emit, facts_table, say

if TYPE_CHECKING:
    from rich.console import Console

    from he_runtime import CompressedModel

__all__ = ["compress", "run_recipe"]


def compress(
    recipe: Annotated[str, typer.Argument(help="A recipe that ships with the project, by name, or a TOML file.")],
    out: Annotated[Path, typer.Option(help="The directory of models to write <name>/<version>/ into.")] = Path(
        "models"
    ),
    version: Annotated[str, typer.Option(help="The version to write.")] = "1",
    module: Annotated[str | None, typer.Option(help="Your own network, as package.module:factory.")] = None,
    data: Annotated[Path | None, typer.Option(help="Where data sets lie; SECATEUR_DATA otherwise.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a version that is already there.")] = False,
    as_json: Json = False,
) -> None:
    """Train, replace activations, prune, quantize and plan a network as a recipe says."""
    from he_runtime import compile
    from he_runtime.errors import InputError

    from .artifacts import save_version
    from .plan import plan_record

    if not version or version in (".", "..") or "/" in version:
        raise InputError(f"cannot write version {version!r}: need a plain name; try 1")
    model = run_recipe(recipe, module=module, data=data, quiet=as_json)
    target = out / model.name / version
    if target.exists() and not overwrite:
        raise InputError(f"cannot write {target}: it is there already; try another --version, or --overwrite")
    planned = compile(model)
    save_version(model, planned, out, version)
    say(f"wrote {target}")
    record = {
        "model": model.name,
        "version": version,
        "directory": str(target),
        "model_digest": model.digest,
        "metadata": {k: v for k, v in model.metadata.items() if k != "recipe"},
        "plan": plan_record(planned),
    }

    def render(console: Console) -> None:
        console.print(facts_table(f"{model.name} version {version}", _facts(record)))

    emit(record, as_json, render)


def run_recipe(
    recipe: str, *, module: str | None = None, data: Path | None = None, quiet: bool = False
) -> CompressedModel:
    """The model that `recipe` (a name or a path) makes of its own network, or of the user's `module`."""
    from model_prep import Recipe
    from model_prep import compress as run

    from .artifacts import find_recipe

    loaded = Recipe.load(find_recipe(recipe))
    return run(None if module is None else _import(module), loaded, quiet=quiet, data_directory=data)


def _import(reference: str) -> Any:
    """The torch module that `package.module:factory` makes; the working directory is searched first."""
    import importlib
    import os
    import sys

    from he_runtime.errors import InputError

    name, _, attribute = reference.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot import {reference!r}: {error}; need package.module:factory") from error
    finally:
        sys.path.remove(os.getcwd())
    return factory()


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    metadata, planned = record["metadata"], record["plan"]
    facts = [("data", str(metadata.get("data", "unknown")))]
    facts += [(f"accuracy, {stage}", f"{value:.2%}") for stage, value in metadata.get("accuracy", {}).items()]
    facts += [(f"logit change, {step}", f"{v:.3g} RMS") for step, v in metadata.get("logit_rms_change", {}).items()]
    return [
        *facts,
        ("parameters", f"N={planned['N']}, log2(QP)={planned['log2_qp']:.1f}, {planned['keys']} keys"),
        ("operations", ", ".join(f"{n} {leaf}" for leaf, n in planned["counts"].items())),
        ("error bound", f"{planned['error_bound']:.3g} (median margin {metadata.get('median_margin', 0.0):.3g})"),
    ]
