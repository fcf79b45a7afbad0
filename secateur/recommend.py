"""`secateur recommend`: from what a query may cost to a recipe, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Backend, Json
from .output import emit, facts_table, say

if TYPE_CHECKING:
    from rich.console import Console

    from he_runtime import CompressedModel

__all__ = ["recommend"]


def recommend(
    network: Annotated[str, typer.Argument(help="A reference network by name, or a model directory of your own.")],
    max_ms: Annotated[
        float | None, typer.Option(help="Milliseconds that one query may take, by the cost table.")
    ] = None,
    max_levels: Annotated[int | None, typer.Option(help="Multiplicative levels that it may use.")] = None,
    max_upload_bytes: Annotated[int | None, typer.Option(help="Bytes of encrypted input that it may send.")] = None,
    accuracy: Annotated[float | None, typer.Option(help="Share of right answers, at least; of 1.")] = None,
    evidence: Annotated[
        list[Path] | None,
        typer.Option(help="JSON of benchmarks/methods.py: what was measured comes first; repeatable.", dir_okay=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the recipe here, for `secateur compress`.")] = None,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Choose methods and settings that keep to a latency, levels, an upload and an accuracy, and say why.

    Refused with the nearest feasible value where no recipe can.
    """
    from model_prep import Constraints
    from model_prep import recommend as choose

    wish = Constraints(max_ms, max_levels, max_upload_bytes, accuracy)
    points = [point for path in evidence or () for point in _points(path)]
    found = choose(wish, _network(network), backend=backend, evidence=points)
    if out is not None:
        _write(out, found.recipe.to_toml())
    record = {
        "network": network,
        "recipe": found.recipe.to_dict(),
        "toml": found.recipe.to_toml(),
        "reasons": list(found.reasons),
        "measured_accuracy": found.measured,
        "before": vars(found.before),
        "written": None if out is None else str(out),
    }
    emit(record, as_json, lambda console: _render(console, record))


def _network(name: str) -> str | CompressedModel:
    """The name of a reference network, or the model in a directory."""
    from he_runtime import CompressedModel
    from he_runtime.errors import ModelError
    from model_prep.networks import NETWORKS

    if name in NETWORKS:
        return name
    if Path(name).is_dir():
        return CompressedModel.load(name)
    raise ModelError(
        f"cannot recommend for {name!r}: need one of {', '.join(NETWORKS)}, or a model directory; "
        "try one that `secateur compress` or model_prep.export wrote"
    )


def _points(path: Path) -> list[dict[str, Any]]:
    from he_runtime.errors import ModelError

    try:
        points = json.loads(path.read_text())["points"]
        known = [dict(point) for point in points]
    except OSError as error:
        raise ModelError(
            f"cannot read evidence {path}: {error.strerror or error}; need JSON of benchmarks/methods.py"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"cannot use evidence {path}: got no points of benchmarks/methods.py ({type(error).__name__}), need its --json"
        ) from error
    say(f"{path}: {len(known)} points")
    return known


def _write(path: Path, text: str) -> None:
    from he_runtime.errors import ModelError

    try:
        path.write_text(text)
    except OSError as error:
        raise ModelError(f"cannot write the recipe to {path}: {error.strerror or error}; try another place") from error
    say(f"wrote {path}; try: secateur compress {path}")


def _render(console: Console, record: dict[str, Any]) -> None:
    before, measured = record["before"], record["measured_accuracy"]
    facts = [
        ("before pruning", f"{before['ms']:.1f} ms, {before['levels']} levels, {before['upload_bytes']:,} bytes up"),
        *((reason.split(":")[0], reason.split(": ", 1)[1]) for reason in record["reasons"]),
    ]
    if measured is not None:
        facts.append(("accuracy", f"{measured:.2%} measured"))
    console.print(facts_table(f"{record['network']}: a recipe", facts))
    if record["written"] is None:
        console.print()
        console.print(record["toml"], soft_wrap=True)
