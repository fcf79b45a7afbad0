"""What a compression method is, and the registry of all of them.

A method is a frozen dataclass of settings with a `card` and an `apply(stage)` that changes the stage's network. The
modules of this package register themselves when they are imported; `model_prep.methods` imports them all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

from he_runtime.errors import ModelError

from ..settings import built
from ..stage import Stage

__all__ = ["FAMILIES", "METHODS", "Card", "Method", "method_from", "register", "table_of"]

FAMILIES = ("approximation", "pruning", "quantization")


@dataclass(frozen=True)
class Card:
    """What a method says of itself.

    `structure` names what becomes zero together (or the levels that weights take), `lowers` the homomorphic quantity
    that it saves, with the packing in which it does, and `source` the publication.
    """

    name: str
    family: str
    structure: str
    lowers: str
    source: str

    def __post_init__(self) -> None:
        assert self.family in FAMILIES, self.family


class Method(ABC):
    """Settings of one method: a frozen dataclass."""

    card: ClassVar[Card]

    @abstractmethod
    def apply(self, stage: Stage) -> None:
        """Train and change the stage's network, and report what was done."""


METHODS: dict[str, type[Method]] = {}
_Class = TypeVar("_Class", bound=Method)


def register(card: Card) -> Callable[[type[_Class]], type[_Class]]:
    """Class decorator: give a method its card and its place in METHODS."""

    def registered(cls: type[_Class]) -> type[_Class]:
        assert card.name not in METHODS, card.name
        cls.card = card
        METHODS[card.name] = cls
        return cls

    return registered


def method_from(table: Any, path: str) -> Method:
    """A method from a recipe's table: its name under "method", settings beside it. ModelError names the known ones."""
    if not isinstance(table, Mapping) or not isinstance(table.get("method"), str):
        got = sorted(table) if isinstance(table, Mapping) else type(table).__name__
        raise ModelError(f"cannot use the {path}: got {got}, need a table with a method; try {sorted(METHODS)}")
    name = table["method"]
    if name not in METHODS:
        raise ModelError(f"cannot use the {path}: unknown method {name!r}, need one of {sorted(METHODS)}")
    found: Method = built(METHODS[name], {k: v for k, v in table.items() if k != "method"}, f"{path} ({name})")
    return found


def table_of(method: Method) -> dict[str, Any]:
    """Plain values: what `method_from` reads."""
    return {"method": method.card.name, **asdict(method)}  # type: ignore[call-overload]
