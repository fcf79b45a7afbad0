"""What is asked of a plan, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from .errors import ParameterError
from .lower.input_layouts import INPUT_PACKINGS
from .model import CompressedModel
from .params import MAX_LOG2_QP

__all__ = ["MAX_PRIMES_PER_LEVEL", "Wish", "error_budget", "require_positive"]

MAX_PRIMES_PER_LEVEL = 3


@dataclass(frozen=True)
class Wish:
    """Ring degrees, the bound of the error, samples per ciphertext, limits of memory, input packings, primes per level, pitched copies.

    Raises ParameterError naming what is no such thing, and what is.
    """

    degrees: Sequence[int]
    budget: float
    batch: int
    max_bytes: int | None
    max_key_bytes: int | None
    input_packings: Collection[str]
    width: int = 1  # primes that a rescale takes
    pitched: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "degrees", _ring_degrees(self.degrees))
        _require_batch(self.batch)
        require_positive("max_bytes", self.max_bytes)
        require_positive("max_key_bytes", self.max_key_bytes)
        names = self.input_packings
        names = frozenset([names] if isinstance(names, str) else names)
        if not names or not names <= set(INPUT_PACKINGS):
            raise ParameterError(f"cannot pack an input as {sorted(names)}: need some of {', '.join(INPUT_PACKINGS)}")
        if not _is_whole(self.width) or not 1 <= self.width <= MAX_PRIMES_PER_LEVEL:
            raise ParameterError(
                f"cannot plan with {self.width} primes per level: need 1 to {MAX_PRIMES_PER_LEVEL}; beyond that "
                "double precision would not tell"
            )
        object.__setattr__(self, "input_packings", names)


def require_positive(name: str, value: float | None) -> None:
    """ParameterError for a number that is given and is not a finite one above 0."""
    if value is not None and not (_is_finite(value) and value > 0):
        raise ParameterError(f"cannot plan with {name}={value}: need a finite number above 0; try leaving it out")


def error_budget(model: CompressedModel, max_error: float | None = None, margin_share: float = 0.25) -> float:
    """What the error bound may be, in output units. ParameterError unless that is a finite number above 0."""
    require_positive("max_error", max_error)
    require_positive("margin_share", margin_share)
    if max_error is not None:
        return max_error
    margin = model.metadata.get("median_margin")
    if margin is None:
        low, high = model.ranges.get(model.output.node, (-1.0, 1.0))
        margin = 0.1 * max(abs(low), abs(high))
    if not margin > 0:
        raise ParameterError(
            f"cannot bound the error of model {model.name!r}: got a median margin of {margin}, need one above 0 between "
            "its two largest outputs; try max_error="
        )
    return margin_share * float(margin)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _ring_degrees(degrees: Any) -> tuple[int, ...]:
    wanted = tuple(degrees) if isinstance(degrees, Iterable) else (degrees,)
    if not isinstance(degrees, Iterable) or not wanted or any(not _is_whole(n) or n not in MAX_LOG2_QP for n in wanted):
        known = ", ".join(map(str, sorted(MAX_LOG2_QP)))
        raise ParameterError(
            f"cannot plan for ring degrees {list(wanted)}: need several or one of {known} in a sequence; try (8192,)"
        )
    return wanted


def _require_batch(batch: Any) -> None:
    if not _is_whole(batch) or batch < 1 or batch & (batch - 1):
        lower = 1 << max(int(batch).bit_length() - 1, 0) if _is_finite(batch) and batch >= 1 else 1
        tried = f"{lower} or {2 * lower}" if lower > 1 else "1"
        raise ParameterError(f"cannot interleave {batch} samples: need a power of two; try batch={tried}")
