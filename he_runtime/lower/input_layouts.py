"""The ways in which a client may pack its input, by name, and what each asks of the layer that reads it."""

from __future__ import annotations

from collections.abc import Sequence

from ..layout import Layout, WindowLayout
from .gather import GatheredLayout
from .pitch import PitchedLayout, writable
from .stagger import StaggeredLayout

__all__ = ["GATHERED", "INPUT_PACKINGS", "InputLayout", "packing_name", "reaches"]

InputLayout = Layout | WindowLayout | StaggeredLayout | GatheredLayout

_NAMES: dict[type, str] = {
    Layout: "plain",
    WindowLayout: "windows",
    StaggeredLayout: "staggered",
    GatheredLayout: "gathered",
}
INPUT_PACKINGS = tuple(_NAMES.values())
GATHERED = _NAMES[GatheredLayout]


def packing_name(layout: InputLayout) -> str:
    """One of INPUT_PACKINGS."""
    return _NAMES[type(layout)]


def reaches(sources: Sequence[InputLayout], target: InputLayout) -> bool:
    """Whether a linear stage can lead there: from staggered copies, from a gather for it, or from or to pitched copies."""
    source = sources[0]
    if isinstance(source, GatheredLayout):
        return source.target == target
    if isinstance(source, StaggeredLayout):
        return target.period <= source.block
    if isinstance(target, PitchedLayout):
        return len(sources) == 1 and writable(source.inner if isinstance(source, WindowLayout) else source, target)
    return len(sources) == 1 or not any(isinstance(x, PitchedLayout) for x in sources)
