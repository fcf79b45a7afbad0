"""Cost tables as the commands use them: the one a user measured, or the one that ships."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from he_runtime import Plan

__all__ = ["load_cost_table", "price_record"]


def load_cost_table(path: Path | None, backend: str) -> Any:
    """The table in `path`, or the one that ships for `backend`."""
    from he_runtime.cost import load_table

    return load_table(path, backend=backend)


def price_record(planned: Plan, table: Any) -> dict[str, Any]:
    """What the plan costs by `table`, as JSON."""
    from he_runtime.cost.price import price

    record: dict[str, Any] = price(planned, table).to_json()
    return record
