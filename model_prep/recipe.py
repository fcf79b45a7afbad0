"""A recipe: everything `compress` decides, as a TOML file. Unknown keys and wrong types are errors."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from he_runtime.errors import ModelError

from .methods import Method, method_from, table_of
from .settings import Training, built, changed, require

__all__ = ["Calibration", "Recipe"]

MAX_MARGIN = 100
MAX_THREADS = 1024


@dataclass(frozen=True)
class Calibration:
    """Ranges and mean squares are measured on `samples` training images; ranges are widened by `margin`."""

    samples: int = 1024
    margin: float = 1.1

    def __post_init__(self) -> None:
        require(self.samples > 0, self, "samples > 0")
        require(1 <= self.margin <= MAX_MARGIN, self, f"margin in [1, {MAX_MARGIN}]")


@dataclass(frozen=True)
class _Settings:
    """A recipe without its steps, whose types a table cannot tell."""

    name: str
    network: str = ""
    dataset: str = "digits"
    seed: int = 0
    train_limit: int = 0  # 0: all training samples
    threads: int = 1  # small networks lose more to thread hand-over than they gain, and results depend on the number
    teacher: Training = field(default_factory=Training)
    calibration: Calibration = field(default_factory=Calibration)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, self, "seed in 0..2^32 - 1")
        require(self.train_limit >= 0, self, "train_limit >= 0")
        require(1 <= self.threads <= MAX_THREADS, self, f"threads in 1..{MAX_THREADS}")

    def with_steps(self, steps: tuple[Method, ...]) -> Recipe:
        return Recipe(**vars(self), steps=steps)


@dataclass(frozen=True)
class Recipe(_Settings):
    """The whole of a compression: how the network is trained, and the steps that follow, in order."""

    steps: tuple[Method, ...] = ()

    @classmethod
    def load(cls, path: Path | str) -> Recipe:
        """Read a TOML file; ModelError on a missing file, bad syntax, unknown keys, wrong types or values."""
        try:
            return cls.from_dict(tomllib.loads(Path(path).read_text()))
        except OSError as error:
            raise ModelError(f"cannot read recipe {path}: {error.strerror or error}; need a TOML file") from error
        except ValueError as error:  # of syntax, of UTF-8, or of an integer of more than 4300 digits
            raise ModelError(f"cannot read recipe {path}: {error}; need valid TOML") from error
        except RecursionError as error:
            raise ModelError(
                f"cannot read recipe {path}: it nests too deeply; need valid TOML of few levels"
            ) from error

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Recipe:
        """From plain values; `steps` is a list of tables, each with a "method"."""
        if not isinstance(table, Mapping):
            raise ModelError(f"cannot use the recipe: got {type(table).__name__}, need a table")
        steps = table.get("steps", [])
        if not isinstance(steps, list | tuple):
            raise ModelError(f"cannot use the recipe.steps: got {type(steps).__name__}, need a list of tables")
        methods = tuple(method_from(step, f"recipe.steps[{i}]") for i, step in enumerate(steps))
        settings = {k: v for k, v in table.items() if k != "steps"}
        recipe: Recipe = built(_Settings, settings, "recipe", ("steps",)).with_steps(methods)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they go into a model's metadata and as `from_dict` reads them."""
        settings = {k: v for k, v in vars(self).items() if k != "steps"}
        plain = {k: asdict(v) if isinstance(v, Training | Calibration) else v for k, v in settings.items()}
        return {**plain, "steps": [table_of(step) for step in self.steps]}

    def to_toml(self) -> str:
        """As a file that `load` reads: what differs from the defaults, in the order of the fields."""
        settings = {k: v for k, v in changed(self).items() if k != "steps"}
        steps = [{"method": step.card.name, **changed(step)} for step in self.steps]
        return "\n".join([_section("", settings), *(_section("steps", step, "[[steps]]\n") for step in steps)])


def _section(path: str, table: Mapping[str, Any], header: str = "") -> str:
    """A table under its header, then the tables in it, each with a header of its own (as inline ones they are unreadable)."""
    import tomli_w  # here, since only a recommended recipe is ever written

    inner = {k: v for k, v in table.items() if isinstance(v, Mapping)}
    text = header + tomli_w.dumps({k: v for k, v in table.items() if k not in inner})
    for name, values in inner.items():
        below = f"{path}.{name}" if path else name
        text += "\n" + _section(below, values, f"[{below}]\n")
    return text
