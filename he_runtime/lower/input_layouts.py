"""The ways in which a client may pack its input, by name, and what each asks of the layer that reads it."""

from __future__ import annotations

from ..layout import Layout, WindowLayout
from .gather import GatheredLayout
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


def reaches(source: InputLayout, target: InputLayout) -> bool:
    """Whether a staggered input's copies can be folded onto the target, or a gathered one is gathered for it."""
    if isinstance(source, GatheredLayout):
        return source.target == target
    return not isinstance(source, StaggeredLayout) or target.period <= source.block
