"""The least loss of a network's sites under every budget of levels, exactly, by dynamic programming over its graph.

A table says for each budget 0..B the least loss at which a piece of the network fits, and by which degrees. Pieces one
after the other share the budget (a min-plus convolution); pieces side by side each have all of it, and their losses add.
So residual branches cost what the longer one costs. A network that series and parallel steps do not reduce to one piece
is treated as if its sites were in a row: its levels are then bounded from above.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from he_runtime.lower.polynomial import depth
from he_runtime.lower.stage_types import MultiplyStage, QuadraticStage
from he_runtime.model import Node

from ..graph import Graph

__all__ = ["Table", "degree_levels", "fixed_levels", "least_losses"]


@dataclass(frozen=True)
class Entry:
    """The least loss within a budget, and the degree of each site of the piece."""

    loss: float
    degrees: tuple[tuple[str, int], ...] = ()


Table = tuple[Entry, ...]  # by budget of levels
_NONE = Entry(math.inf)


def degree_levels(degree: int) -> int:
    """Levels that the runtime spends on a polynomial of this degree, the linear layers around it merged."""
    return depth(degree) if degree >= 2 else 0


def least_losses(graph: Graph, losses: Mapping[str, Mapping[int, float]], budget: int) -> Table:
    """The table of the whole network up to `budget`; `losses` maps a site to the loss of each degree it may have."""
    tables = {n.name: _table(n, graph, losses, budget) for n in graph.nodes}
    pieces: _Pieces = {}
    for node in graph.nodes:
        entry = f"{node.name}/in"
        for source in node.inputs:
            _put(pieces, (source, entry), _free(budget))
        _put(pieces, (entry, node.name), tables[node.name])
    _reduce(pieces, {graph.input_name, graph.output})
    whole = pieces.get((graph.input_name, graph.output))
    return whole if whole is not None and len(pieces) == 1 else _row(list(tables.values()))


def _table(node: Node, graph: Graph, losses: Mapping[str, Mapping[int, float]], budget: int) -> Table:
    if node.name not in losses:
        needed = fixed_levels(node, graph)
        return tuple(Entry(0.0) if b >= needed else _NONE for b in range(budget + 1))
    options = [Entry(loss, ((node.name, d),)) for d, loss in sorted(losses[node.name].items())]
    return tuple(
        min((o for o in options if degree_levels(o.degrees[0][1]) <= b), key=lambda o: o.loss, default=_NONE)
        for b in range(budget + 1)
    )


def fixed_levels(node: Node, graph: Graph) -> int:
    """Levels of a node that is no site, linear layers around it merged."""
    if node.op == "polynomial":
        return degree_levels(graph.array(node, "coefficients").shape[-1] - 1)
    return {"quadratic": QuadraticStage.rescales, "multiply": MultiplyStage.rescales, "matmul": 1}.get(node.op, 0)


def _free(budget: int) -> Table:
    return (Entry(0.0),) * (budget + 1)


def _both(left: Entry, right: Entry) -> Entry:
    return Entry(left.loss + right.loss, left.degrees + right.degrees)


def _series(first: Table, second: Table) -> Table:
    def best(budget: int) -> Entry:
        k = min(range(budget + 1), key=lambda k: first[k].loss + second[budget - k].loss)
        return _both(first[k], second[budget - k])

    return tuple(best(budget) for budget in range(len(first)))


def _parallel(left: Table, right: Table) -> Table:
    return tuple(_both(a, b) for a, b in zip(left, right, strict=True))


def _row(tables: Sequence[Table]) -> Table:
    return reduce(_series, tables)


_Pieces = dict[tuple[str, str], Table]  # (from, to) -> table


def _put(pieces: _Pieces, ends: tuple[str, str], table: Table) -> None:
    pieces[ends] = _parallel(pieces[ends], table) if ends in pieces else table


def _reduce(pieces: _Pieces, terminals: set[str]) -> None:
    """Contract every inner point with one piece before it and one after it, until none is left."""
    waiting = {end for ends in pieces for end in ends} - terminals
    while waiting:
        point = min(waiting)  # any would do, but ties between degrees must fall the same way every time
        waiting.remove(point)
        before = [ends for ends in pieces if ends[1] == point]
        after = [ends for ends in pieces if ends[0] == point]
        if len(before) == len(after) == 1:
            table = _series(pieces.pop(before[0]), pieces.pop(after[0]))
            _put(pieces, (before[0][0], after[0][1]), table)
            # Its neighbours may have become contractible, since two pieces between the same ends are one.
            waiting |= {before[0][0], after[0][1]} - terminals
