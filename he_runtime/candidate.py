"""One candidate: a program with the primes and scales that a search proposes becomes a plan with a predicted error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .error_bound import SlotErrors, quietest
from .fewer_keys import with_fewer_keys
from .gadget import SEAL, Gadget
from .lower.emission import VectorPool
from .lower.emit import Program, Scales, Values, emit
from .lower.lowering import Lowering, Note
from .lower.packing import Packing
from .lower.partial_sums import slot_peaks
from .lower.statistics import Statistics
from .model import CompressedModel
from .noise import encoding_error, slot_variance, worst_lane_variance
from .params import CkksParams
from .plan import Plan, Port

__all__ = ["MAX_PRIME_BITS", "Candidate", "Problem", "assemble", "predicted", "slot_errors"]

MAX_PRIME_BITS = 59.5  # SEAL allows 60; half a bit keeps the search below it

Floats = npt.NDArray[np.float64]
Candidate = tuple[Plan, Lowering]  # a plan, and what its values hold
_FOLLOWED = 1 << 28  # samples times products times slots that a prediction may take: a few seconds
_LEAST_SAMPLES = 16


@dataclass(frozen=True)
class Problem:
    """What is fixed for one ring degree while scales are searched. `budget` bounds the error, `max_key_bytes` the keys.

    No prime is longer than `prime_bits`, nor the first one than `first_bits`. On a gadget with digits of `alpha` primes
    there are as many special ones.
    """

    model: CompressedModel
    program: Program
    degree: int
    depth: int
    budget: float
    max_key_bytes: int | None = None
    prime_bits: float = MAX_PRIME_BITS
    first_bits: float = MAX_PRIME_BITS
    gadget: Gadget = field(default_factory=lambda: Gadget.parse(SEAL))
    pool: VectorPool = field(default_factory=VectorPool)
    squares: dict[int, Floats] = field(default_factory=dict, repr=False)
    followed: list[Candidate] = field(default_factory=list, repr=False)  # whose error was predicted, in order
    peaks: dict[str, float] = field(default_factory=dict, repr=False)  # of `slot_peaks`, once they are known

    @cached_property
    def statistics(self) -> Statistics:
        products = sum(len(p.diagonals.cells) for p in self.program.packing.packed.values())
        most = _FOLLOWED // max(1, products * self.degree // 2 // self.program.batch)
        return Statistics(self.model, tuple(self.program.stages), max(_LEAST_SAMPLES, most))

    @property
    def magnitudes(self) -> Mapping[str, float]:
        """The largest value that calibration saw of each tensor."""
        return self.statistics.magnitudes

    @property
    def slot_peaks(self) -> Mapping[str, float]:
        """The largest values beside pitched copies."""
        if not self.peaks:
            self.peaks.update(slot_peaks(self.program, self.statistics))
        return self.peaks

    def plain(self) -> Problem | None:
        """The same without pitched copies, where there are some: dearer, but with less rounding of operands."""
        packing = self.program.packing.plain
        return None if packing is None else self._repacked(packing)

    def evenly_split(self) -> Problem:
        """The same with fewer baby steps, which err at the scale of what they rotate; a giant step at that of a product."""
        return self._repacked(self.program.packing.evenly_split(self.program.stages))

    def _repacked(self, packing: Packing) -> Problem:
        program = replace(self.program, packing=packing)
        return replace(self, program=program, pool=VectorPool(), squares={}, peaks={})


def assemble(problem: Problem, params: CkksParams, scales: Scales) -> Candidate:
    model, packing = problem.model, problem.program.packing
    source, target = model.input.name, model.output.node
    low, layers = emit(problem.program, params, scales, problem.magnitudes, problem.pool, problem.slot_peaks)
    e, tensors = low.emission, low.tensors
    plan = Plan(
        model_name=model.name,
        model_digest=model.digest,
        params=params,
        ops=tuple(e.ops),
        values=tuple(e.values),
        vectors=tuple(e.pool.vectors),
        plaintexts=tuple(e.plaintexts),
        inputs=(Port(source, model.input.shape, tuple(tensors[source].values()), packing.input_layout.slot_map),),
        outputs=(
            Port(target, model.shape_of(target), tuple(tensors[target].values()), packing.layouts[target].slot_map),
        ),
        layers=layers,
        gadget=problem.gadget.name,
        batch=problem.program.batch,
        client={
            "mean": list(model.input.mean),
            "std": list(model.input.std),
            "low": model.input.low,
            "high": model.input.high,
            "labels": list(model.output.labels),
            "post_processing": model.output.post_processing,
        },
    )
    return quietest(plan, _on_average(problem, plan, low)), low


def predicted(problem: Problem, plan: Plan, low: Lowering) -> Plan:
    """The plan with the error predicted along single calibration samples, where the model kept any."""
    if problem.max_key_bytes is not None:
        plan = with_fewer_keys(plan, problem.max_key_bytes)
    whole = replace(plan.outputs[0], slot_map=problem.program.packing.layouts[problem.model.output.node].slot_map)
    plan = replace(plan, outputs=(whole,))
    problem.followed.append((plan, low))
    return quietest(plan, slot_errors(problem, plan, low))


def slot_errors(problem: Problem, plan: Plan, low: Lowering) -> SlotErrors:
    """Of every slot of the output, along the calibration samples where the model kept any."""
    average = _on_average(problem, plan, low)
    samples = problem.statistics.inputs
    if samples is None:
        return average
    random = slot_variance(plan, *_knowledge(problem, low, mean=False), encoding=False, squares=problem.squares)
    name = problem.model.input.name
    inputs = _per_slot(problem, {name: low.tensors[name]}, {name: samples})
    return SlotErrors(random + encoding_error(plan, list(inputs.values())), average.peaks)


def _on_average(problem: Problem, plan: Plan, low: Lowering) -> SlotErrors:
    """The error predicted from mean squares, as of one sample."""
    means = _knowledge(problem, low, mean=True)
    variance = slot_variance(plan, *means, squares=problem.squares)
    worst = worst_lane_variance(plan, *means, squares=problem.squares)
    return SlotErrors(variance, None if worst is None else np.maximum(worst / variance.mean(axis=1), 1.0))


def _knowledge(problem: Problem, low: Lowering, mean: bool) -> tuple[dict[int, Floats], dict[int, tuple[int, Floats]]]:
    """Per value and slot: squares of what is known, and the squared derivatives by which polynomials carry errors on."""
    facts = problem.statistics
    known = _per_slot(problem, low.tensors, facts.mean_squares if mean else facts.squares)
    inside: dict[tuple[str, str], tuple[Note, Values]] = {}
    for value, note in low.notes.items():
        inside.setdefault((note.stage, note.label), (note, {}))[1][note.index] = value
    for note, values in inside.values():
        known |= _per_slot(problem, {note.stage: values}, {note.stage: facts.inside(note, mean)})
    results: dict[str, Values] = {}
    for value, by in low.carried.items():
        results.setdefault(by.stage, {})[by.index] = value
    slopes = _per_slot(problem, results, {name: facts.slopes(name, mean) for name in results})
    return known, {value: (low.carried[value].mapped, slope) for value, slope in slopes.items()}


def _per_slot(problem: Problem, tensors: Mapping[str, Values], facts: Mapping[str, Floats]) -> dict[int, Floats]:
    """What is known per element (samples, *shape) -> per slot (samples, slots), zero where unused, by value of the plan."""
    known: dict[int, Floats] = {}
    for name, values in tensors.items():
        is_input = name == problem.model.input.name
        packing = problem.program.packing
        slot_map = packing.input_layout.slot_map if is_input else packing.layouts[name].likeness
        flat = facts[name].reshape(len(facts[name]), -1)
        padded = np.concatenate([flat, np.zeros((len(flat), 1))], axis=1)
        known.update({value: padded[:, slot_map[k]] for k, value in values.items()})
    return known
