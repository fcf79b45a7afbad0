"""Settings as frozen dataclasses, read strictly from plain tables: unknown keys and wrong types are errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from he_runtime.errors import ModelError

__all__ = ["Training", "built", "changed", "require"]

OPTIMIZERS = ("adam", "sgd")


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
        require(self.epochs >= 0 and self.batch_size > 0, "training", "epochs >= 0 and batch_size > 0")
        require(self.learning_rate > 0 and self.temperature > 0, "training", "learning_rate and temperature > 0")
        require(0 <= self.distillation <= 1, "training", "distillation in [0, 1]")
        require(self.optimizer in OPTIMIZERS, "training", f"optimizer in {OPTIMIZERS}")
        require(self.shift >= 0 and 0 <= self.label_smoothing < 1, "training", "shift >= 0, label_smoothing in [0, 1)")


def require(condition: bool, where: str, need: str) -> None:
    """ModelError "cannot use the recipe's [WHERE]: need NEED" unless the condition holds."""
    if not condition:
        raise ModelError(f"cannot use the recipe's [{where}]: need {need}")


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
    return cls(**{key: _convert(hints[key], value, f"{path}.{key}") for key, value in table.items()})


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
    return float(value) if hint is float else value
