"""`secateur plan --batch`: the batch sizes that were weighed, and from how many queries on a batch pays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .output import table

if TYPE_CHECKING:
    from rich.console import Console

    from he_runtime.batching import BatchPlan

__all__ = ["batch_record", "render_batch"]


def batch_record(found: BatchPlan) -> dict[str, Any]:
    """What a program may want to know of the choice. `crossover` is None where single queries are best."""
    return {
        "samples": found.samples,
        "batch": found.chosen.batch,
        "crossover": found.crossover,
        "options": [
            {
                "batch": option.batch,
                "N": option.degree,
                "run_ms": option.latency_ms,
                "runs": -(-found.samples // option.batch),
                "total_ms": option.total_ms(found.samples),
                "planned": option.planned,
                "chosen": option == found.chosen,
            }
            for option in found.options
        ],
    }


def render_batch(console: Console, model: str, record: dict[str, Any]) -> None:
    """The options as a table, the chosen one marked, and one sentence on the crossover."""
    title = f"{model}: {record['samples']:,} queries"
    drawn = table(("queries a run", "N", "ms a run", "runs", "ms in all", "ms each", ""), title, text_columns=0)
    for option in record["options"]:
        mark = "chosen" if option["chosen"] else "" if option["planned"] else "estimated"
        drawn.add_row(
            f"{option['batch']:,}",
            str(option["N"]),
            f"{option['run_ms']:,.1f}",
            f"{option['runs']:,}",
            f"{option['total_ms']:,.1f}",
            f"{option['total_ms'] / record['samples']:,.2f}",
            mark,
        )
    console.print(drawn)
    console.print()
    if record["crossover"] is None:
        console.print("Single queries are best at any number of them up to this one.")
    else:
        console.print(f"Batches of {record['batch']:,} beat single queries from {record['crossover']:,} queries on.")
