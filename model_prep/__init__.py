"""From a torch module to a CompressedModel: capture, train, replace activations, fold, prune, quantize.

The only package that imports torch, and only when one of these names is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .exporter import export as export
    from .pipeline import compress as compress
    from .recipe import Recipe as Recipe
    from .recommendation import Constraints as Constraints
    from .recommendation import recommend as recommend

__all__ = ["Constraints", "Recipe", "compress", "export", "recommend"]

_HOMES = {
    "compress": ".pipeline",
    "export": ".exporter",
    "Recipe": ".recipe",
    "Constraints": ".constraints",
    "recommend": ".recommendation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
