"""`secateur compress`: run a recipe, and write a model directory that a server can serve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Data, Json
from .output import counts_table, emit, facts_table, say

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from he_runtime import CompressedModel

__all__ = ["compress", "run_recipe", "stage_facts"]


def compress(
    recipe: Annotated[str, typer.Argument(help="A recipe that ships with the project, by name, or a TOML file.")],
    out: Annotated[Path, typer.Option(help="The directory of models to write <name>/<version>/ into.")] = Path(
        "models"
    ),
    version: Annotated[str, typer.Option(help="The version to write.")] = "1",
    module: Annotated[str | None, typer.Option(help="Your own network, as package.module:factory.")] = None,
    data: Data = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a version that is already there.")] = False,
    as_json: Json = False,
) -> None:
    """Train, prune, quantize and plan a network by a recipe."""
    from he_runtime import compile
    from model_prep import Recipe

    from .artifacts import dense_counts, find_recipe, new_version, save_plan
    from .plan import plan_record

    target = new_version(out, Recipe.load(find_recipe(recipe)).name, version, overwrite=overwrite)
    say("training and compressing ...")
    model = run_recipe(recipe, module=module, data=data)
    model.save(target)
    say("planning ...")
    planned, dense = compile(model), dense_counts(model)
    save_plan(planned, dense, target)
    say(f"wrote {target}")
    record = {
        "model": model.name,
        "version": version,
        "directory": str(target),
        "model_digest": model.digest,
        "metadata": {k: v for k, v in model.metadata.items() if k != "recipe"},
        "dense_counts": dense,
        "plan": plan_record(planned),
    }
    emit(record, as_json, lambda console: _render(console, record))


def run_recipe(recipe: str, *, module: str | None = None, data: Path | None = None) -> CompressedModel:
    """The model that `recipe` (a name or a path) makes of its own network, or of the user's `module`."""
    from model_prep import Recipe
    from model_prep import compress as run

    from .artifacts import find_recipe

    network = None if module is None else _make(module)
    return run(network, Recipe.load(find_recipe(recipe)), data_directory=data)


def _make(reference: str) -> nn.Module:
    """The torch module that `package.module:factory` makes; the working directory is searched first."""
    import importlib
    import os
    import sys

    from torch import nn

    from he_runtime.errors import InputError

    name, _, attribute = reference.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        network = getattr(importlib.import_module(name), attribute)()
    except Exception as error:  # the user's code may fail in any way
        raise InputError(
            f"cannot make a network by {reference!r}: got {type(error).__name__}: {error}, need package.module:factory"
        ) from error
    finally:
        sys.path.remove(os.getcwd())
    if not isinstance(network, nn.Module):
        raise InputError(f"cannot use what {reference!r} makes: got {type(network).__name__}, need a torch.nn.Module")
    return network


def stage_facts(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What each step of a compression did to the accuracy and to the logits, in the order of the steps."""
    accuracy, change = metadata.get("accuracy", {}), metadata.get("logit_rms_change", {})
    facts = [(f"accuracy, {step}", f"{share:.2%}") for step, share in accuracy.items()]
    return facts + [(f"logits moved by {step}", f"{rms:.3g} RMS") for step, rms in change.items()]


def _render(console: Console, record: dict[str, Any]) -> None:
    metadata, planned = record["metadata"], record["plan"]
    margin = f"; median margin {metadata['median_margin']:.3g}" if "median_margin" in metadata else ""
    facts = [
        ("data", f"{metadata['data']}, {metadata['test_samples']} test samples"),
        *stage_facts(metadata),
        ("parameters", f"N={planned['N']}, log2(QP)={planned['log2_qp']:.1f}, {planned['keys']} keys"),
        ("error bound", f"{planned['error_bound']:.3g} per output{margin}"),
    ]
    console.print(facts_table(f"{record['model']} version {record['version']}", facts))
    console.print()
    console.print(counts_table({"dense": record["dense_counts"], "compressed": planned["counts"]}))
