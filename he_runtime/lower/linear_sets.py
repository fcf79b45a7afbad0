"""The diagonals of one linear stage, whatever the layouts of the tensors on either side."""

from __future__ import annotations

from collections.abc import Mapping

from ..layout import Layout, WindowLayout
from .diagonals import DiagonalSet, diagonal_set
from .gather import GatheredLayout, gathered_set
from .input_layouts import InputLayout
from .joint import JointLayout
from .maps import LinearMap
from .pitch import PitchedLayout, read_set, write_set
from .stage_types import LinearStage
from .stagger import StaggeredLayout, staggered_set

__all__ = ["LinearLayout", "linear_operand", "linear_set"]

LinearLayout = Layout | JointLayout | StaggeredLayout | GatheredLayout  # what a linear map is applied to


def linear_operand(stage: LinearStage, layouts: Mapping[str, InputLayout]) -> tuple[LinearMap, LinearLayout]:
    """The map of a stage and the layout of its inputs; over gathered windows where the input is laid out so."""
    found = [layouts[name] for name in stage.inputs]
    if isinstance(found[0], WindowLayout):
        assert stage.windowed is not None
        return stage.windowed[1], found[0].inner
    if isinstance(found[0], StaggeredLayout | GatheredLayout):
        return stage.map, found[0]
    parts = tuple(x for x in found if isinstance(x, Layout))
    return stage.map, parts[0] if len(parts) == 1 else JointLayout(parts)


def linear_set(stage: LinearStage, layouts: Mapping[str, InputLayout]) -> DiagonalSet:
    """With the layouts of its inputs and output, which `reaches` allows."""
    target = layouts[stage.name]
    assert isinstance(target, Layout)
    map_, operand = linear_operand(stage, layouts)
    if isinstance(operand, StaggeredLayout):
        return staggered_set(map_, operand, target)
    if isinstance(operand, GatheredLayout):
        return gathered_set(operand)
    if isinstance(operand, PitchedLayout):
        return read_set(map_, operand, target)
    if isinstance(target, PitchedLayout):
        assert isinstance(operand, Layout)
        return write_set(map_, operand, target)
    return diagonal_set(map_, operand, target)
