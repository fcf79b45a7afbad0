"""A recipe's steps as `secateur compress` follows them: what each left of the network, kept for a rerun, and its picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_prep.checkpoints import Checkpoints, write_whole

from .output import say, table

if TYPE_CHECKING:
    from rich.table import Table

    from model_prep.methods import Method
    from model_prep.recipe import Recipe
    from model_prep.stage import Stage

__all__ = ["Steps", "steps_table", "write_steps_png"]

_COLUMNS = ("step", "accuracy", "logits moved", "non-zeros", "predicted ms")
_LOOKED_AT = 1024  # training samples that ranges are measured on for a price between steps

_KEYS = {"step", "name", "accuracy", "logit_rms_change", "nonzeros", "predicted_ms"}  # of a row
_MOST = 1e30  # no number of a row reaches it


class Steps(Checkpoints):
    """Prints each step as it begins, and keeps one row of facts for each that ended, in `rows`.

    A row has the step's number and name, the accuracy, the RMS change of the logits, the weights left, and the predicted
    latency in milliseconds, None with a reason `why` where the network cannot be planned yet.
    """

    def __init__(self, directory: Path, code: str) -> None:
        super().__init__(directory, code)
        self.rows: list[dict[str, Any]] = []
        self.resumed: int | None = None

    def restore(self, stage: Stage, recipe: Recipe, steps: Sequence[Method]) -> int | None:
        self.resumed = super().restore(stage, recipe, steps)
        if self.resumed is not None:
            say(f"going on after step {self.resumed} of {len(steps)}, which an earlier run finished")
            self.rows = [
                row for number in range(self.resumed + 1) if (row := _read(self.path(number, ".json"), number))
            ]
        return self.resumed

    def begins(self, name: str, number: int, total: int) -> None:
        say(f"step {number} of {total}: {name} ..." if number else f"{name} ...")

    def done(self, name: str, number: int, total: int, stage: Stage) -> None:
        self.rows.append({"step": number, "name": name} | _facts(stage))
        write_whole(self.path(number, ".json"), json.dumps(self.rows[-1]).encode())
        super().done(name, number, total, stage)
        if not self.kept:
            say(f"cannot keep the state after {name}: a rerun would repeat that step")


def _facts(stage: Stage) -> dict[str, Any]:
    """What a row says of the network as it stands."""
    import numpy as np

    from model_prep.train import accuracy

    logits = list(stage.logits.values())
    moved = float(np.sqrt(np.mean((logits[-1].astype(np.float64) - logits[-2]) ** 2))) if len(logits) > 1 else None
    graph = stage.graph()
    return {
        "accuracy": accuracy(logits[-1], stage.y_test),
        "logit_rms_change": moved,
        "nonzeros": sum(int(np.count_nonzero(graph.arrays[key])) for key in stage.net.weight_keys()),
        **_price(stage),
    }


def _price(stage: Stage) -> dict[str, Any]:
    """Predicted milliseconds of the network as it would leave now."""
    import numpy as np

    from he_runtime import compile, price
    from he_runtime.backends import default_backend
    from he_runtime.cost import load_default
    from he_runtime.errors import SecateurError
    from he_runtime.reference import calibrate

    if stage.graph().activations():
        return {"predicted_ms": None, "why": "it still has activations that no ciphertext can pass"}
    table = load_default(default_backend())
    try:
        model = calibrate(stage.snapshot(), stage.x[:_LOOKED_AT].astype(np.float64))
        return {"predicted_ms": price(compile(model, table=table), table).latency_ms}
    except SecateurError as error:
        return {"predicted_ms": None, "why": error.message}


def _read(path: Path, number: int) -> dict[str, Any] | None:
    """The row of step `number`; None where the file holds no whole one, as a crash may leave it: it is then left out."""
    try:
        row = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and _whole(row, number) else None


def _whole(row: dict[str, Any], number: int) -> bool:
    """Whether a row is one that `Steps.done` writes."""
    if row.keys() - {"why"} != _KEYS or type(row["step"]) is not int or row["step"] != number:
        return False
    counts = [row["accuracy"], row["nonzeros"]]
    counts += [row[key] for key in ("logit_rms_change", "predicted_ms") if row[key] is not None]
    texts = [row["name"], row.get("why", "")]
    return all(isinstance(text, str) for text in texts) and all(
        type(count) in (int, float) and 0 <= count < _MOST for count in counts
    )


def steps_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One row per finished step, as a person reads it."""
    drawn = table(_COLUMNS, "steps")
    for row in rows:
        moved, ms = row["logit_rms_change"], row["predicted_ms"]
        drawn.add_row(
            f"{row['step']} {row['name']}",
            f"{row['accuracy']:.2%}",
            "" if moved is None else f"{moved:.3g}",
            f"{row['nonzeros']:,}",
            "" if ms is None else f"{ms:.1f}",
        )
    return drawn


def write_steps_png(rows: Sequence[dict[str, Any]], title: str, path: Path) -> bool:
    """Accuracy against predicted latency over the steps; False where no two steps have a price.

    Raises ModuleNotFoundError without matplotlib.
    """
    from matplotlib.figure import Figure

    priced = [row for row in rows if row["predicted_ms"] is not None]
    if len(priced) < 2:
        return False
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    ms, accuracy = [row["predicted_ms"] for row in priced], [100 * row["accuracy"] for row in priced]
    axis.plot(ms, accuracy, marker="o", color="#0072b2", linewidth=1.2)
    for k, row in enumerate(priced):
        above = 8 if k % 2 == 0 else -14
        text = f"{row['step']} {row['name']}"
        axis.annotate(text, (ms[k], accuracy[k]), (0, above), textcoords="offset points", ha="center", fontsize="small")
    for row in rows:
        if row["predicted_ms"] is None:
            axis.axhline(100 * row["accuracy"], color="#888888", linestyle="--", linewidth=1)
            axis.annotate(row["name"], (0.01, 100 * row["accuracy"]), (0, 3), xycoords=("axes fraction", "data"),
                          textcoords="offset points", ha="left", fontsize="small", color="#666666")  # fmt: skip
    axis.set(
        title=title, xlabel="predicted latency (ms)", ylabel="accuracy on the test set (%)", xlim=(0, max(ms) * 1.15)
    )
    axis.margins(y=0.2)
    axis.grid(alpha=0.25)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True
