"""Settings as frozen dataclasses, read strictly from plain tables: unknown keys and wrong types are errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from math import inf, isfinite
from operator import attrgetter
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from he_runtime.errors import ModelError

__all__ = ["Training", "Unusable", "built", "changed", "require", "shown"]

OPTIMIZERS = ("adam", "sgd")
MAX_RATE = 1e30  # factors within float32, also after Adam's division by 0.1: torch takes no larger ones
_NAME = re.compile(r"(?<![\w'.])[a-z_]+(?:\.[a-z_]+)*")  # not within quotes, where choices are listed
_SHOWN = 80  # characters


@dataclass(frozen=True)
class Training:
    """One training run: AdamW or SGD with momentum, cosine learning rate. Zero epochs trains nothing."""

    epochs: int = 0
    learning_rate: float = 1e-3
    batch_size: int = 64
    weight_decay: float = 1e-4
    optimizer: str = "adam"
    distillation: float = 0.9  # weight of the teacher's soft labels; the rest is cross entropy
    temperature: float = 1.0
    label_smoothing: float = 0.0
    shift: int = 0  # augmentation: images are moved by up to this many pixels along each axis

    def __post_init__(self) -> None:
        require(self.epochs >= 0 and self.batch_size > 0, self, "epochs >= 0 and batch_size > 0")
        require(0 < self.learning_rate <= MAX_RATE, self, f"learning_rate in (0, {MAX_RATE:g}]")
        require(0 <= self.weight_decay <= MAX_RATE, self, f"weight_decay in [0, {MAX_RATE:g}]")
        require(0 < self.temperature < inf, self, "temperature > 0, and finite")
        require(0 <= self.distillation <= 1, self, "distillation in [0, 1]")
        require(self.optimizer in OPTIMIZERS, self, f"optimizer in {OPTIMIZERS}")
        require(self.shift >= 0 and 0 <= self.label_smoothing < 1, self, "shift >= 0, label_smoothing in [0, 1)")


class Unusable(ModelError):
    """ModelError "cannot use PLACE: WHAT"; who reads the settings from a table knows the place better, and says it."""

    def __init__(self, place: str, what: str) -> None:
        super().__init__(f"cannot use {place}: {what}")
        self.what = what


def require(condition: bool, settings: Any, need: str) -> None:
    """ModelError "cannot use the recipe's [PLACE]: got NAME = VALUE, need NEED" unless the condition holds.

    PLACE is a method's name, or that of the class of the settings (a dataclass); the NAMEs are those of its fields that
    `need` speaks of, and of theirs, as in "admm.hard".
    """
    if condition:
        return
    known = {field.name for field in fields(settings)}
    named = dict.fromkeys(name for name in _NAME.findall(need) if name.split(".")[0] in known)
    assert named, need  # it says nothing about the settings
    got = ", ".join(f"{name} = {shown(attrgetter(name)(settings))}" for name in named)
    place = settings.card.name if hasattr(settings, "card") else type(settings).__name__.lower()
    raise Unusable("the recipe" if place == "recipe" else f"the recipe's [{place}]", f"got {got}, need {need}")


def shown(value: Any) -> str:
    """A value as messages hold it, short whatever was given."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        return "an integer of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def built(cls: Any, table: Any, path: str, elsewhere: tuple[str, ...] = ()) -> Any:
    """A settings dataclass from a table of plain values; `path` names the table in messages.

    `elsewhere` are keys that the caller reads, so that messages name them too.
    """
    if not isinstance(table, Mapping):
        raise ModelError(f"cannot use the {path}: got {type(table).__name__}, need a table")
    known = {f.name: f for f in fields(cls) if f.init}
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ModelError(f"cannot use the {path}: unknown keys {unknown}, need some of {sorted({*known, *elsewhere})}")
    missing = sorted(
        name for name, f in known.items() if name not in table and f.default is MISSING and f.default_factory is MISSING
    )
    if missing:
        raise ModelError(f"cannot use the {path}: got keys {sorted(table)}, need a {missing[0]}")
    hints = get_type_hints(cls)
    values = {key: _convert(hints[key], value, f"{path}.{key}") for key, value in table.items()}
    try:
        return cls(**values)
    except ModelError as error:
        raise Unusable(f"the {path}", error.what if isinstance(error, Unusable) else str(error)) from error


def changed(settings: Any) -> dict[str, Any]:
    """The fields of a settings dataclass that differ from its defaults, as plain values; those without a default too."""
    found: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if value != default and value is not None:
            found[field.name] = changed(value) if is_dataclass(value) and not isinstance(value, type) else value
    return found


def _convert(hint: Any, value: Any, path: str) -> Any:
    if get_origin(hint) in (Union, UnionType):
        if value is None:
            return None
        hint = next(option for option in get_args(hint) if option is not type(None))
    if is_dataclass(hint):
        return built(hint, value, path)
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ModelError(f"cannot use the {path}: got {type(value).__name__}, need a list")
        return tuple(_convert(get_args(hint)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if get_origin(hint) is not None:
        if not isinstance(value, Mapping):
            raise ModelError(f"cannot use the {path}: got {type(value).__name__}, need a table")
        return {str(key): _convert(get_args(hint)[1], item, f"{path}.{key}") for key, item in value.items()}
    accepted = (int, float) if hint is float else (hint,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise ModelError(f"cannot use the {path}: got {type(value).__name__}, need {hint.__name__}")
    return _finite(value, path) if hint is float else value


def _finite(value: float, path: str) -> float:
    """As a float. No setting has a use for infinity, and NaN passes through comparisons unseen."""
    try:
        found = float(value)
    except OverflowError:  # an integer beyond 1.8e308
        found = inf
    if not isfinite(found):
        raise ModelError(f"cannot use the {path}: got {shown(value)}, need a finite number")
    return found
