"""Which degree each activation's polynomial gets: least loss of accuracy within a budget of levels.

Losses are measured, one site replaced at a time, and taken to add up (as AutoFHE's and OLA's searches do); levels are the
runtime's own. What dynamic programming proposes is lowered, and counts only by the levels that come out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from he_runtime.cost import CostTable
from he_runtime.errors import ModelError
from he_runtime.lower.constants import fold_constants
from he_runtime.lower.levels import stage_levels
from he_runtime.lower.stages import build_stages
from he_runtime.model import InputSpec

from ..graph import ACTIVATION, Graph
from ..trainable import TrainableGraph
from .approximation import replace_sites
from .level_tables import degree_levels, fixed_levels, least_losses
from .merging import planned_ms

__all__ = ["DEGREES", "Choice", "Selection", "choose_degrees", "measure_losses", "measure_ms", "planned_levels"]

Float32 = npt.NDArray[np.float32]
Table = dict[str, dict[int, float]]
DEGREES = (0, 2, 3, 7, 15)
_SLOTS = 4096  # levels depend on the number of slots only where there is one


@dataclass(frozen=True)
class Choice:
    """A degree per site, the loss that the additive model predicts, and the levels of the lowered network."""

    degrees: Mapping[str, int]
    loss: float
    levels: int


@dataclass(frozen=True)
class Selection:
    """What was chosen, and the frontier: the least loss found at each number of levels, fewest levels first."""

    chosen: Choice
    frontier: tuple[Choice, ...]
    losses: Mapping[str, Mapping[int, float]]

    def to_json(self) -> dict[str, Any]:
        """Plain data, as it goes into a model's metadata; degrees of the losses are strings there, infinity is None."""
        losses = {
            site: {str(d): loss if math.isfinite(loss) else None for d, loss in row.items()}
            for site, row in self.losses.items()
        }
        return {"chosen": asdict(self.chosen), "frontier": [asdict(c) for c in self.frontier], "losses": losses}


def choose_degrees(
    graph: Graph,
    losses: Mapping[str, Mapping[int, float]],
    budget: int,
    *,
    ms: Mapping[str, Mapping[int, float]] | None = None,
    loss_per_ms: float = 0.0,
) -> Selection:
    """The degrees of least total loss whose network takes at most `budget` levels; `graph` still has its activations.

    `losses` maps each site to the loss of every degree it may have (`measure_losses`); `ms` likewise to predicted
    milliseconds (`measure_ms`), of which each weighs `loss_per_ms`. Raises ModelError where not all activations
    have losses, or, naming the least feasible budget, where the budget is too small.
    """
    _check(graph, losses)
    weighed = {
        site: {d: loss + (loss_per_ms * ms[site][d] if ms and loss_per_ms else 0.0) for d, loss in row.items()}
        for site, row in losses.items()
    }
    most = sum(max(map(degree_levels, row)) for row in losses.values())
    most += sum(fixed_levels(node, graph) for node in graph.nodes)
    frontier: list[Choice] = []
    least = math.inf
    for entry in least_losses(graph, weighed, most):
        if entry.loss < least:
            least, degrees = entry.loss, dict(entry.degrees)
            choice = Choice(degrees, sum(losses[s][d] for s, d in degrees.items()), planned_levels(graph, degrees))
            frontier.append(choice)
    within = [c for c in frontier if c.levels <= budget]
    if not within:
        need = f"at least {min(c.levels for c in frontier)}" if frontier else "a degree of finite loss for each site"
        raise ModelError(f"cannot choose degrees within {budget} levels: need {need}; try that, or lower degrees")
    return Selection(within[-1], tuple(frontier), losses)


def _check(graph: Graph, losses: Mapping[str, Mapping[int, float]]) -> None:
    names = {node.name for node in graph.activations()}
    if set(losses) != names or not all(losses.values()):
        raise ModelError(
            f"cannot choose degrees: got losses of {sorted(losses)}, need at least one of each of {sorted(names)}"
        )
    wrong = {site: d for site, row in losses.items() for d, v in row.items() if math.isnan(v) or d < 0}
    if wrong:
        raise ModelError(f"cannot choose degrees: got no number as the loss of {wrong}; try inf to rule a degree out")


@torch.no_grad()
def measure_losses(
    graph: Graph,
    x: Float32,
    degrees: Sequence[int] = DEGREES,
    *,
    sites: Collection[str] | None = None,
    line: bool = True,
    keep: Mapping[str, int] | None = None,
) -> Table:
    """site -> degree -> rise of the distillation loss KL(network || network with that one site replaced), untrained.

    `x` (B, *shape) holds normalized inputs; polynomials are fitted on its first half and measured on the second.
    `keep` fixes the degree of some sites. A degree whose outputs are not finite has an infinite loss.
    """
    half = max(1, len(x) // 2)
    fitted, measured = x[:half], torch.as_tensor(x[half:] if len(x) > 1 else x, dtype=torch.float32)
    expected = F.log_softmax(TrainableGraph(graph)(measured), dim=1)
    losses: Table = {}
    for node in graph.activations():
        if sites is not None and node.name not in sites:
            continue
        options = [keep[node.name]] if keep and node.name in keep else degrees
        losses[node.name] = {}
        for degree in options:
            changed, new = replace_sites(graph, fitted, {node.name: degree}, line=line)
            got = F.log_softmax(TrainableGraph(changed, new).eval()(measured), dim=1)
            loss = float(F.kl_div(got, expected, reduction="batchmean", log_target=True))
            losses[node.name][degree] = loss if math.isfinite(loss) else math.inf
    return losses


def measure_ms(
    graph: Graph,
    x: Float32,
    degrees: Sequence[int] = DEGREES,
    *,
    others: int = 2,
    keep: Mapping[str, int] | None = None,
    table: CostTable | None = None,
) -> Table:
    """site -> degree -> predicted milliseconds of the whole plan with that site at the degree and the rest at `others`.

    `keep` fixes the degree of some sites. Infinite where no ring holds the plan. Only differences between the degrees
    of a site mean something.
    """
    cost, kept = planned_ms(x, table), dict(keep or {})
    usual = {node.name: kept.get(node.name, others) for node in graph.activations()}
    found: Table = {}
    for name in usual:
        options = [kept[name]] if name in kept else degrees
        found[name] = {d: cost(replace_sites(graph, x, usual | {name: d})[0]) for d in options}
    return found


def planned_levels(graph: Graph, degrees: Mapping[str, int]) -> int:
    """Levels that the runtime gives the network with these degrees, whatever the coefficients will be."""
    for name, degree in degrees.items():
        node = graph.node(name)
        if node.op != ACTIVATION:
            raise ModelError(f"cannot plan site {name!r}: got op {node.op!r}, need an activation")
        if degree < 2:
            graph = graph.without(name)
            continue
        attrs = {"basis": "chebyshev", "low": -1.0, "high": 1.0}
        polynomial = replace(node, op="polynomial", attrs=attrs, arrays={})
        graph = graph.with_node(polynomial).with_arrays(polynomial, {"coefficients": np.ones(degree + 1)})
    stages, _ = fold_constants(build_stages(graph.to_model("levels", InputSpec("", graph.input_shape)), _SLOTS))
    return max(stage_levels(stages).values())
