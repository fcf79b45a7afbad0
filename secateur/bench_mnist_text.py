"""What `secateur bench mnist` shows a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .output import table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["render"]

_SECONDS = {
    "native_s": "native",
    "native_1thread_s": "1 thread",
    "tenseal_backend_s": "tenseal",
    "tenseal_api_s": "TenSEAL API",
    "orion_s": "Orion",
}
_RATIOS = {
    "tenseal_backend_over_native": "tenseal",
    "tenseal_api_over_native": "TenSEAL API",
    "orion_over_native": "Orion",
    "orion_over_native_1thread": "Orion, 1 thread",
}


def render(console: Console, record: dict[str, Any]) -> None:
    """Seconds, ratios, errors, parameters and memory, and why something is missing."""
    rows = record["networks"]
    console.print(f"{record['machine']}, {record['cores']} cores; {record['data']}, {record['images']} test images")
    console.print()
    console.print(_seconds(rows, record["cores"]))
    console.print()
    console.print(_ratios(rows))
    console.print()
    console.print(_errors(rows))
    console.print()
    console.print(_parameters(rows))
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for name, why in row["reasons"].items():
            reasons.setdefault(why, []).append(f"{row['network']} {name}")
    for why, names in reasons.items():
        console.print()
        console.print(f"no figure for {', '.join(names)}: {why}")


def _seconds(rows: list[dict[str, Any]], cores: int) -> Any:
    title = f"median seconds, native with {cores} threads and with one"
    drawn = table(("network", *_SECONDS.values()), title)
    for row in rows:
        drawn.add_row(row["network"], *(_number(row[key], 3) for key in _SECONDS))
    return drawn


def _errors(rows: list[dict[str, Any]]) -> Any:
    title = "error over the largest logit, answers as in the clear"
    drawn = table(("network", *_SECONDS.values()), title)
    for row in rows:
        cells = []
        for key in _SECONDS:
            error = row["relative_errors"].get(key.removesuffix("_s"))
            matches = row["argmax_matches_of"].get(key.removesuffix("_s"))
            cells.append("-" if error is None else f"{error:.2%} {matches}/{row['images']}")
        drawn.add_row(row["network"], *cells)
    return drawn


def _ratios(rows: list[dict[str, Any]]) -> Any:
    drawn = table(("network", *_RATIOS.values()), "times as long as native")
    for row in rows:
        drawn.add_row(row["network"], *(_number(row["ratios"][key], 1) for key in _RATIOS))
    return drawn


def _parameters(rows: list[dict[str, Any]]) -> Any:
    columns = ("network", "N", "log2(QP)", "Orion's N", "log2(QP)", "peak MB", "predicted")
    drawn = table(columns, "128-bit parameters, and memory to evaluate")
    for row in rows:
        orion = row["parameters"].get("orion", {})
        degree = str(2 ** orion["config"]["LogN"]) if orion else "-"
        megabytes = [None if row[key] is None else row[key] / 1e6 for key in ("peak_bytes", "predicted_peak_bytes")]
        drawn.add_row(
            row["network"],
            "-" if row["N"] is None else str(row["N"]),
            _number(row["log2_qp"], 1),
            degree,
            _number(orion.get("log2_qp"), 0),
            *(_number(value, 0) for value in megabytes),
        )
    return drawn


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
