"""What a service must keep to, what the planner says of a network, and what of the one the other misses."""

from __future__ import annotations

from dataclasses import dataclass

from he_runtime import compile, price
from he_runtime.backends import default_backend
from he_runtime.cost import CostTable, load_default
from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel

__all__ = ["Constraints", "Cost", "cost_of", "unmet"]


@dataclass(frozen=True)
class Constraints:
    """What one query may take, each None where it does not matter.

    `max_ms` milliseconds by the back end's shipped cost table; `max_levels` multiplicative levels consumed;
    `max_upload_bytes` of encrypted input; `accuracy` the share of right answers on the test set, at least.
    """

    max_ms: float | None = None
    max_levels: int | None = None
    max_upload_bytes: int | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        for name, kind in (("max_ms", float), ("max_levels", int), ("max_upload_bytes", int), ("accuracy", float)):
            value = getattr(self, name)
            accepted = (int, float) if kind is float else (int,)
            if value is not None and (not isinstance(value, accepted) or isinstance(value, bool)):
                raise ModelError(f"cannot use the constraint {name}: got {type(value).__name__}, need {kind.__name__}")
        for name in ("max_ms", "max_upload_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ModelError(f"cannot use the constraint {name} = {value}: need more than 0")
        if self.max_levels is not None and self.max_levels < 0:
            raise ModelError(f"cannot use the constraint max_levels = {self.max_levels}: need 0 or more")
        if self.accuracy is not None and not 0 < self.accuracy <= 1:
            raise ModelError(f"cannot use the constraint accuracy = {self.accuracy}: need a share in (0, 1]")


@dataclass(frozen=True)
class Cost:
    """The planner's price of one query of a network."""

    ms: float
    levels: int
    upload_bytes: int

    def over(self, wish: Constraints) -> list[tuple[str, float, float]]:
        """The constraints that this exceeds, but for accuracy: name, what was asked, what this needs."""
        pairs = {
            "max_ms": (wish.max_ms, self.ms),
            "max_levels": (wish.max_levels, self.levels),
            "max_upload_bytes": (wish.max_upload_bytes, self.upload_bytes),
        }
        return [(name, asked, need) for name, (asked, need) in pairs.items() if asked is not None and need > asked]


def unmet(constraints: Constraints, model: CompressedModel, *, backend: str | None = None) -> list[str]:
    """What a compressed model misses of the constraints, in words; empty where it meets them all.

    ModelError where an accuracy was asked and the model's metadata state none.
    """
    found = [
        f"{name}: got {need:g}, need at most {asked:g}"
        for name, asked, need in cost_of(model, load_default(backend or default_backend())).over(constraints)
    ]
    if constraints.accuracy is not None:
        accuracy = model.metadata.get("accuracy", {}).get("final")
        if accuracy is None:
            raise ModelError("cannot check an accuracy: the model states none; try one that `compress` made")
        if accuracy < constraints.accuracy:
            found.append(f"accuracy: got {accuracy:g}, need at least {constraints.accuracy:g}")
    return found


def cost_of(model: CompressedModel, table: CostTable) -> Cost:
    """What the planner says of one query."""
    report = price(compile(model, table=table), table)
    return Cost(report.latency_ms, report.levels, report.upload_bytes)
