"""`secateur compress`: run a recipe, and write a model directory that a server can serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Data, Json
from .output import counts_table, emit, facts_table, say

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from he_runtime import CompressedModel
    from model_prep.watcher import Watcher

__all__ = ["compress", "run_recipe", "stage_facts"]

_PICTURE = "steps.png"  # of the steps, beside the model


def compress(
    recipe: Annotated[str, typer.Argument(help="A recipe that ships with the project, by name, or a TOML file.")],
    out: Annotated[Path, typer.Option(help="The directory of models to write <name>/<version>/ into.")] = Path(
        "models"
    ),
    version: Annotated[str, typer.Option(help="The version to write.")] = "1",
    module: Annotated[str | None, typer.Option(help="Your own network, as package.module:factory.")] = None,
    data: Data = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a version that is already there.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget the steps that an interrupted run finished.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train, prune, quantize and plan a network by a recipe.

    Interrupted, it goes on after the last finished step when called again.
    """
    from model_prep import Recipe

    from .artifacts import find_recipe
    from .compress_steps import Steps
    from .trained import identity
    from .version_directory import new_version, unfinished

    target = new_version(out, Recipe.load(find_recipe(recipe)).name, version, overwrite=overwrite)
    steps = Steps(unfinished(target), identity())
    if restart:
        steps.forget()
    model = run_recipe(recipe, module=module, data=data, watcher=steps)
    facts = _write(model, target, steps.rows, overwrite)
    say(f"wrote {target}")
    steps.forget()
    record = {
        "model": model.name,
        "version": version,
        "directory": str(target),
        "model_digest": model.digest,
        "metadata": {k: v for k, v in model.metadata.items() if k != "recipe"},
        "steps": steps.rows,
        "resumed_after": steps.resumed,
        **facts,
    }
    emit(record, as_json, lambda console: _render(console, record))


def _write(model: CompressedModel, target: Path, rows: Sequence[dict[str, Any]], overwrite: bool) -> dict[str, Any]:
    """Plan a model and write the version, all of it or nothing; what the record says of that."""
    from he_runtime import compile

    from .artifacts import dense_counts, save_plan, seal
    from .plan import plan_record
    from .version_directory import written

    say("planning ...")
    planned, dense = compile(model), dense_counts(model)
    with written(target, overwrite=overwrite) as draft:
        model.save(draft)
        save_plan(planned, dense, draft)
        drawn = _drawn(rows, f"{model.name} version {target.name}", draft / _PICTURE)
        digest = seal(draft)  # the last file of all: a version that is half copied is not served
    return {
        "dense_counts": dense,
        "plan": plan_record(planned),
        "picture": str(target / _PICTURE) if drawn else None,
        "version_digest": digest,
    }


def _drawn(rows: Sequence[dict[str, Any]], title: str, path: Path) -> bool:
    """Draw the steps; False where there is nothing to draw, or nothing to draw with."""
    from .compress_steps import write_steps_png

    try:
        return write_steps_png(rows, title, path)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        say("wrote no PNG: matplotlib is not installed; try pip install 'secateur[plot]'")
        return False


def run_recipe(
    recipe: str, *, module: str | None = None, data: Path | None = None, watcher: Watcher | None = None
) -> CompressedModel:
    """The model that `recipe` (a name or a path) makes of its own network, or of the user's `module`.

    The user's network is made with torch seeded by the recipe, so that a rerun starts from the same weights.
    """
    from model_prep import Recipe
    from model_prep import compress as run

    from .artifacts import find_recipe

    loaded = Recipe.load(find_recipe(recipe))
    network = None if module is None else _make(module, loaded.seed)
    return run(network, loaded, data_directory=data, watcher=watcher)


def _make(reference: str, seed: int) -> nn.Module:
    """The torch module that `package.module:factory` makes; the working directory is searched first."""
    import importlib
    import os
    import sys

    import torch
    from torch import nn

    from he_runtime.errors import InputError

    name, _, attribute = reference.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
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
    from .compress_steps import steps_table

    metadata, planned = record["metadata"], record["plan"]
    margin = f"; median margin {metadata['median_margin']:.3g}" if "median_margin" in metadata else ""
    facts = [
        ("data", f"{metadata['data']}, {metadata['test_samples']} test samples"),
        ("accuracy, final", f"{metadata['accuracy']['final']:.2%}"),
        ("parameters", f"N={planned['N']}, log2(QP)={planned['log2_qp']:.1f}, {planned['keys']} keys"),
        ("error bound", f"{planned['error_bound']:.3g} per output{margin}"),
    ]
    console.print(facts_table(f"{record['model']} version {record['version']}", facts))
    console.print()
    console.print(steps_table(record["steps"]))
    console.print()
    console.print(counts_table({"dense": record["dense_counts"], "compressed": planned["counts"]}))
    if record["picture"]:
        console.print()
        console.print(f"accuracy against predicted latency: {record['picture']}", soft_wrap=True)
