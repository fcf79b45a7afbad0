"""Real weights in the place of a stand-in's: the same plan, other operands, and an error bound that is known beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..candidate import Problem, slot_errors
from ..error_bound import SIGMAS
from ..errors import DoesNotFit, PlanError
from ..execute import run_clear
from ..lower.emit import require_room
from ..lower.lowering import Lowering
from ..lower.program import Program
from ..lower.stages import build_stages
from ..model import CompressedModel
from ..plan import SHAPE, Plan
from ..reference import forward
from .operands import Operands, paired_stages

__all__ = ["public_budget", "with_weights"]

Floats = npt.NDArray[np.float64]
_SLACK = 4.0  # how much noisier than its stand-in a network may be: its tensors are not of mean square one
_PROMISED = 16.0  # times the stand-in's bound is what clients are told, rounded up to a power of two
_STAND_IN_ERROR = 2.0**-3  # of outputs of mean square one
_CHECKED = 4  # samples on which the plan is held against the model
_AGREEMENT = 1e-9


def public_budget(max_error: float | None) -> float:
    """What the error bound of the stand-in's output may be, in output units."""
    return _STAND_IN_ERROR if max_error is None else max_error / _SLACK


def with_weights(plan: Plan, problem: Problem, model: CompressedModel, max_error: float | None, budget: float) -> Plan:
    """The stand-in's plan for `model`, where its error is predicted to stay within `budget` and the promised bound.

    The promise to clients is `max_error`, or a bound that follows from the stand-in's own. Raises DoesNotFit where the
    model's values or its error are larger than what is public.
    """
    low = next(found for followed, found in reversed(problem.followed) if followed.ops is plan.ops)
    program = problem.program
    slots = plan.params.slots // plan.batch
    own = replace(program, stages=paired_stages(program.stages, build_stages(model, slots)))
    real = replace(problem, model=model, program=own, squares={}, followed=[])
    _require_range(real, low)
    made = _replaced(plan, program, own, model)
    promise = max_error if max_error is not None else 2.0 ** math.ceil(math.log2(plan.error_bound * _PROMISED))
    error = _error(real, made, low)
    if error > min(promise, budget):
        raise DoesNotFit(
            f"cannot hide the structure of model {model.name!r}: got a predicted error of {error:.3g}, need at most "
            f"{min(promise, budget):.3g} at N={plan.params.degree}; try a larger N with degrees=, or another max_error=, "
            "which clients then see"
        )
    made = replace(made, sigma=promise / SIGMAS, error_bound=promise)
    _require_same_function(real, made)
    return made


def _replaced(plan: Plan, program: Program, own: Program, model: CompressedModel) -> Plan:
    operands = Operands(program, own)
    layers = tuple(
        replace(layer, magnitude=_magnitude(model.ranges, layer.name, layer.magnitude)) for layer in plan.layers
    )
    return replace(
        plan,
        model_digest=model.digest,
        vectors=tuple(operands.of(vector) for vector in plan.vectors),
        layers=layers,
        disclosure=SHAPE,
    )


def _magnitude(ranges: Mapping[str, tuple[float, float]], name: str, otherwise: float) -> float:
    low, high = ranges.get(name, (-otherwise, otherwise))
    return max(abs(low), abs(high))


def _require_range(real: Problem, low: Lowering) -> None:
    """DoesNotFit where a tensor of the model is larger than what the moduli of the stand-in's plan have room for."""
    try:
        for stage in real.program.stages:
            require_room(low, stage, max(real.magnitudes.get(stage.name, 1.0), real.slot_peaks.get(stage.name, 0.0)))
    except DoesNotFit as error:
        raise DoesNotFit(
            f"cannot hide the structure of model {real.model.name!r}: its values are larger than clients are told "
            f"({error.message}); try a larger magnitude=, which clients may then infer"
        ) from error


def _error(real: Problem, plan: Plan, low: Lowering) -> float:
    """The bound on the predicted error, read where the stand-in's plan has clients read."""
    return slot_errors(real, plan, low).bound(plan.outputs[0].slot_map >= 0)


def _require_same_function(real: Problem, plan: Plan) -> None:
    """PlanError unless the plan computes the model: an operand that was forgotten would go unnoticed otherwise."""
    samples = real.statistics.inputs
    if samples is None:
        samples = np.random.default_rng(0).uniform(-1, 1, size=(_CHECKED, *real.model.input.shape))
    samples = samples[:_CHECKED]
    expected = forward(real.model, samples)
    if not np.allclose(run_clear(plan, samples), expected, atol=_AGREEMENT * max(1.0, float(np.abs(expected).max()))):
        raise PlanError(f"cannot hide the structure of model {real.model.name!r}: its plan computes something else")
