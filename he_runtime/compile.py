"""compile(model) -> Plan: stages, levels, packing, parameters, ops, checks, in that order."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

from .backends import default_backend
from .candidate import MAX_PRIME_BITS, Problem
from .chain import LEAST_LEVEL_BITS, MIN_PRIME_BITS
from .cost import CostTable, load_default
from .disclosure import PUBLIC_MAGNITUDE, public_budget, stand_in, with_weights
from .errors import DoesNotFit, ParameterError
from .floor import error_floor
from .gadget import SEAL
from .gadget_choice import cheapest_plan, choices, require_gadget
from .lower.constants import check_output, fold_constants
from .lower.costs import Costs
from .lower.emit import Program
from .lower.input_layouts import GATHERED, INPUT_PACKINGS
from .lower.levels import stage_levels
from .lower.packing import choose_packing
from .lower.stages import build_stages
from .lower.statistics import Statistics
from .model import CompressedModel
from .params import DEGREES, MAX_LOG2_QP
from .plan import SHAPE, STRUCTURE, Plan, verify
from .refusals import nearest, require_floor, require_memory, require_quadratic, require_width, too_deep
from .wish import Wish, error_budget, require_positive

__all__ = ["DEGREES", "compile", "lower"]

_MAX_CIPHERTEXTS = 64  # per tensor and single query: beyond it a larger ring is cheaper
_MAX_BATCH_CIPHERTEXTS = 4096  # what clients accept
_OBLIVIOUS = frozenset(INPUT_PACKINGS) - {GATHERED}  # packings that do not follow the zeros


def compile(
    model: CompressedModel,
    *,
    degrees: Sequence[int] = DEGREES,
    max_error: float | None = None,
    margin_share: float = 0.25,
    batch: int = 1,
    table: CostTable | None = None,
    max_bytes: int | None = None,
    max_key_bytes: int | None = None,
    gadget: str | None = SEAL,
    input_packings: Collection[str] = INPUT_PACKINGS,
    pitched: bool = True,
    disclosure: str = STRUCTURE,
    magnitude: float = PUBLIC_MAGNITUDE,
    primes_per_level: int = 1,
) -> Plan:
    """Plan `model` at the least latency: the smallest ring whose predicted error holds the budget.

    Where tensors span several ciphertexts there, larger rings that price lower are taken instead.

    `batch` samples (a power of two) are interleaved in every ciphertext; with as many samples as slots there is one
    feature per ciphertext and no rotation at all. Packings are weighed by `table`, by default the one that
    ships with the default back end.

    The budget bounds the predicted error of the outputs (he_runtime/error_bound.py): `max_error` in output units, or by default `margin_share` of the model's
    median margin between the two largest outputs. Among the prime chains of a ring the one with the smallest
    predicted error is taken, since SEAL's cost depends on the number of primes only.

    A plan that needs more memory of a worker than `max_bytes` is not taken. Where the evaluation keys exceed
    `max_key_bytes` on the wire, rotations that are rarely needed go by way of two others.

    A plan on the gadget "seal" runs on every back end. With a table of the native one, `gadget` may be "hybrid-2" and
    the like, or None for the cheapest: digits of several primes, on that back end alone.

    The client packs its input in one of `input_packings`, the cheapest: "plain", "windows" of the first convolution,
    "staggered" copies, or "gathered" by the rows of the first linear layer, which tells it where that has non-zeros.

    Between linear layers, tensors may lie in copies at a pitch of their own (he_runtime/lower/pitch.py), which saves most of
    a dense layer's products and many rotations; not `pitched`, operations follow the diagonals of each layer.

    With the disclosure "structure", parameters, keys, operations and latency follow the model's zeros and ranges, and clients
    can tell. With "shape" they follow its layers and dimensions only, at the price of the dense network: `max_error`
    is then the error that clients are told, and `magnitude` what every tensor may reach; both are public, so neither is to
    be fitted to the weights. Inputs are never gathered then (he_runtime/disclosure).

    With two or three `primes_per_level` errors fall to about 1e-6 or 1e-11, which releases of decryptions need, at several
    times the price; activations have to be quadratic then.

    Raises DoesNotFit naming the layer, what is missing there and the nearest change that would fit, ModelError for an
    unsupported op, or ParameterError for a wish that no plan can have.
    """
    table = table or load_default(default_backend())
    require_gadget(gadget, table)
    budget = error_budget(model, max_error, margin_share)
    wish = Wish(degrees, budget, batch, max_bytes, max_key_bytes, input_packings, primes_per_level, pitched)
    if not _tells_shape_only(disclosure):
        return _cheapest(model, wish, table, gadget)[0]
    require_positive("magnitude", magnitude)
    public = replace(wish, budget=public_budget(max_error), input_packings=_ungathered(frozenset(wish.input_packings)))
    plan, problem = _cheapest(stand_in(model, magnitude), public, table, gadget)
    return verify(with_weights(plan, problem, model, max_error, budget))


def _tells_shape_only(disclosure: str) -> bool:
    if disclosure not in (STRUCTURE, SHAPE):
        raise ParameterError(f"cannot plan for the disclosure {disclosure!r}: need {STRUCTURE!r} or {SHAPE!r}")
    return disclosure == SHAPE


def _ungathered(names: frozenset[str]) -> frozenset[str]:
    """Without the packing that follows the zeros; ParameterError where nothing is left."""
    left = names - {GATHERED}
    if not left:
        raise ParameterError(f"cannot gather an input and tell the shape only: need one of {sorted(_OBLIVIOUS)} too")
    return left


_Found = tuple[Plan, Problem, float]  # with seconds by the table


def _cheapest(model: CompressedModel, wish: Wish, table: CostTable, gadget: str | None) -> tuple[Plan, Problem]:
    """The cheapest plan by the table, on the smallest ring that holds one, or on a larger one that prices lower."""
    reasons: list[DoesNotFit | ParameterError] = []
    found: _Found | None = None
    for degree in wish.degrees:
        try:
            made = _on_ring(model, wish, degree, table, gadget, found)
        except (DoesNotFit, ParameterError) as error:
            reasons.append(error)
            made = None if found else _gathered_instead(model, wish, degree, table, gadget)
            if made is None:
                continue
        if made is None:
            break
        found = made
        if found[1].program.packing.ciphertexts == 1 or wish.batch > 1:
            break
    if found is not None:
        return verify(found[0]), found[1]
    tried = ", ".join(map(str, wish.degrees))
    raise DoesNotFit(
        f"cannot plan model {model.name!r}: no ring degree of {tried} holds it; nearest: {nearest(reasons).message}"
    )


def _on_ring(
    model: CompressedModel, wish: Wish, degree: int, table: CostTable, gadget: str | None, found: _Found | None = None
) -> _Found | None:
    """The plan of one ring; None where what was found before is cheaper. DoesNotFit, ParameterError."""
    # A ring that is no last resort need not be packed to be refused.
    budget = math.inf if degree == wish.degrees[-1] else wish.budget
    program, depth = lower(
        model, degree, wish.batch, table, budget, wish.input_packings, wish.width, pitched=wish.pitched
    )
    problem = Problem(model, program, degree, depth, wish.budget, wish.max_key_bytes)
    if found and next(choices(problem, table, gadget))[0] >= found[2]:
        return None
    made = cheapest_plan(problem, table, gadget)
    require_memory(made[0], wish.max_bytes, table.backend)
    return made


def _gathered_instead(
    model: CompressedModel, wish: Wish, degree: int, table: CostTable, gadget: str | None
) -> _Found | None:
    """The plan with an input that the client gathers, where the cheapest packing of a ring errs too much: nothing is rotated
    before the first products then."""
    if GATHERED not in wish.input_packings or set(wish.input_packings) == {GATHERED}:
        return None
    try:
        return _on_ring(model, replace(wish, input_packings=(GATHERED,)), degree, table, gadget)
    except (DoesNotFit, ParameterError):
        return None


def lower(
    model: CompressedModel,
    degree: int,
    batch: int,
    table: CostTable,
    budget: float = math.inf,
    input_packings: Collection[str] = INPUT_PACKINGS,
    width: int = 1,
    *,
    pitched: bool = True,
) -> tuple[Program, int]:
    """Everything but scales: the packed stages on a ring, and how many primes they take beyond the first.

    DoesNotFit when a tensor or the levels do not fit, an output depends on no input, or no packing holds the budget.
    """
    slots = degree // 2 // batch  # lane groups: what one sample has of a ciphertext
    if slots < 1:
        raise DoesNotFit(f"cannot pack a batch of {batch} into {degree // 2} slots; try {degree // 2}, or a larger N")
    stages, constants = fold_constants(build_stages(model, slots))
    levels = stage_levels(stages, width - 1, width)
    depth = max(levels.values())
    if width > 1:
        budget = math.inf  # the floor is that of one prime per level
        require_quadratic(stages)
    if (depth + 2) * MIN_PRIME_BITS > MAX_LOG2_QP[degree]:
        raise too_deep(stages, levels, degree, 2 * LEAST_LEVEL_BITS, LEAST_LEVEL_BITS)
    limit = _MAX_CIPHERTEXTS if batch == 1 else _MAX_BATCH_CIPHERTEXTS
    if slots > 1:
        require_floor(error_floor(stages, Statistics(model, tuple(stages)), degree, MAX_PRIME_BITS), degree, budget)
        require_width(stages, model.input.name, model.input.shape, slots, limit, degree)
    source, costs = model.input, Costs(table, degree)
    packing = choose_packing(stages, source.name, source.shape, slots, levels, costs, limit, input_packings, pitched)
    check_output(model.output.node, constants, packing.layouts[model.output.node])
    return Program(stages, constants, packing, model.input.name, batch, width - 1, width), depth
