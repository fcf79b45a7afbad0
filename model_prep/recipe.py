"""A recipe: everything `compress` decides, as a TOML file. Unknown keys and wrong types are errors."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from he_runtime.compile import DEGREES
from he_runtime.errors import ModelError

__all__ = ["Calibration", "Polynomial", "Pruning", "Quantization", "Recipe", "Training"]

OPTIMIZERS = ("adam", "sgd")
STRUCTURES = ("magnitude", "diagonal")


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
        _require(self.epochs >= 0 and self.batch_size > 0, "training", "epochs >= 0 and batch_size > 0")
        _require(self.learning_rate > 0 and self.temperature > 0, "training", "learning_rate and temperature > 0")
        _require(0 <= self.distillation <= 1, "training", "distillation in [0, 1]")
        _require(self.optimizer in OPTIMIZERS, "training", f"optimizer in {OPTIMIZERS}")
        _require(self.shift >= 0 and 0 <= self.label_smoothing < 1, "training", "shift >= 0, label_smoothing in [0, 1)")


@dataclass(frozen=True)
class Polynomial:
    """Activations to quadratics. `blend` is the part of the epochs over which the quadratics are mixed in."""

    training: Training = field(default_factory=Training)
    blend: float = 1 / 3
    range_penalty: float = 1e-3
    range_exponent: int = 6

    def __post_init__(self) -> None:
        _require(0 <= self.blend <= 1, "polynomial", "blend in [0, 1]")
        _require(self.range_penalty >= 0, "polynomial", "range_penalty >= 0")
        _require(self.range_exponent >= 2 and self.range_exponent % 2 == 0, "polynomial", "an even range_exponent >= 2")


@dataclass(frozen=True)
class Pruning:
    """What part of the weights (magnitude) or of each layer's diagonals stays.

    `layers` overrides `density` by node name. `ramp` is the part of the epochs over which sparsity rises (cubic); at 0
    the mask is cut once. `minimum` is the least part of all prunable weights that every layer keeps (magnitude only).
    """

    structure: str = "magnitude"
    density: float = 1.0
    layers: Mapping[str, float] = field(default_factory=dict)
    ramp: float = 0.5
    minimum: float = 0.0005
    degree: int = 0  # ring degree whose packing defines the diagonals; 0: that of the plan before pruning
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _require(self.structure in STRUCTURES, "pruning", f"structure in {STRUCTURES}")
        _require(all(0 < d <= 1 for d in (self.density, *self.layers.values())), "pruning", "densities in (0, 1]")
        _require(0 <= self.ramp <= 1 and 0 <= self.minimum < 1, "pruning", "ramp in [0, 1] and minimum in [0, 1)")
        _require(not self.layers or self.structure == "diagonal", "pruning", "layers only with structure = 'diagonal'")
        _require(self.degree == 0 or self.degree in DEGREES, "pruning", f"degree 0 or one of {DEGREES}")


@dataclass(frozen=True)
class Quantization:
    """Symmetric integer weights, one step per tensor; training (if any) is straight-through on the folded network."""

    bits: int = 8
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _require(2 <= self.bits <= 16, "quantization", "bits in 2..16")


@dataclass(frozen=True)
class Calibration:
    """Ranges and mean squares are measured on `samples` training images; ranges are widened by `margin`."""

    samples: int = 1024
    margin: float = 1.1

    def __post_init__(self) -> None:
        _require(self.samples > 0 and self.margin >= 1, "calibration", "samples > 0 and margin >= 1")


@dataclass(frozen=True)
class Recipe:
    """The whole of a compression. A missing table leaves its step out (no pruning, no quantization)."""

    name: str
    network: str = ""
    dataset: str = "digits"
    seed: int = 0
    train_limit: int = 0  # 0: all training samples
    threads: int = 1  # small networks lose more to thread hand-over than they gain, and results depend on the number
    teacher: Training = field(default_factory=Training)
    polynomial: Polynomial = field(default_factory=Polynomial)
    pruning: Pruning | None = None
    quantization: Quantization | None = None
    calibration: Calibration = field(default_factory=Calibration)

    @classmethod
    def load(cls, path: Path | str) -> Recipe:
        """Read a TOML file; ModelError on a missing file, bad syntax, unknown keys, wrong types or values."""
        try:
            return cls.from_dict(tomllib.loads(Path(path).read_text()))
        except OSError as error:
            raise ModelError(f"cannot read recipe {path}: {error.strerror or error}; need a TOML file") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"cannot read recipe {path}: {error}; need valid TOML") from error

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Recipe:
        recipe: Recipe = _build(cls, table, "recipe")
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they go into a model's metadata."""
        return asdict(self)


def _require(condition: bool, where: str, need: str) -> None:
    if not condition:
        raise ModelError(f"cannot use the recipe's [{where}]: need {need}")


def _build(cls: Any, table: Any, path: str) -> Any:
    if not isinstance(table, Mapping):
        raise ModelError(f"cannot use the recipe's {path}: got {type(table).__name__}, need a table")
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise ModelError(f"cannot use the recipe's {path}: unknown keys {unknown}, need some of {sorted(known)}")
    if cls is Recipe and "name" not in table:
        raise ModelError(f"cannot use the recipe: got keys {sorted(table)}, need a name")
    hints = get_type_hints(cls)
    return cls(**{key: _convert(hints[key], value, f"{path}.{key}") for key, value in table.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    if get_origin(hint) in (Union, UnionType):
        hint = next(option for option in get_args(hint) if option is not type(None))
    if is_dataclass(hint):
        return _build(hint, value, path)
    if get_origin(hint) is not None:
        if not isinstance(value, Mapping):
            raise ModelError(f"cannot use the recipe's {path}: got {type(value).__name__}, need a table")
        return {str(key): _convert(get_args(hint)[1], item, f"{path}.{key}") for key, item in value.items()}
    accepted = (int, float) if hint is float else (hint,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise ModelError(f"cannot use the recipe's {path}: got {type(value).__name__}, need {hint.__name__}")
    return float(value) if hint is float else value
