"""Predicted error of an encrypted run: per-slot variance carried through the same ops that run.

The real part of every error is tracked, as variance in units of the value (scale divided out). Sources, for ring
degree N, ternary secret (2N/3 non-zeros on average) and SEAL's error of standard deviation 3.2:

* encoding a real operand of period p at scale s: p / 6 / s^2 per slot. Only 2p coefficients are rounded, and real slots
  make them antisymmetric, so the whole error is real; a constant is one rounded integer, whose error is known;
* fresh symmetric encryption: N * 3.2^2 / 2, plus N / 12 for rounding the encoded input;
* rescaling, and the division by the special prime: N * (1 + 2N/3) / 24;
* key switching: the digits are residues in [0, q_i), not centred, so besides N q_i^2 / 12 the mean q_i / 2 of their
  coefficients adds (q_i / 2)^2 * |2 / (1 - zeta_j)|^2 in slot j, times the key error N * 3.2^2, over 2 P^2. The
  slots whose root lies next to 1 are therefore much noisier than the rest. On a hybrid gadget a digit is the product of
  several primes and centred, so that term is absent.

References: Cheon, Kim, Kim, Song, ASIACRYPT'17, section 3 (rescaling and encryption noise); the per-slot key-switching
term is derived from SEAL's digit decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from .backends.base import Check, Evaluator, walk
from .backends.clear import ClearEvaluator
from .encoding import constant, rounded
from .gadget import SEAL, Gadget
from .noise_sums import ConstantOperands, summed
from .params import CkksParams
from .plan import Op, Plan

__all__ = ["NoiseValue", "encoding_error", "fresh_variance", "slot_variance", "worst_lane_variance"]

Slots = npt.NDArray[np.float64]
Lanes = npt.NDArray[np.int64]
_WORST_LANES = 8  # of a batch, that are followed by themselves
ERROR_VARIANCE = 3.2**2
_REMEMBERED = 1 << 25  # squared operands, in slots: 256 MiB


class NoiseValue:
    """Mean square of the value and variance of its error, per slot, with level and scale."""

    __slots__ = ("level", "mean_square", "scale", "variance")

    def __init__(self, mean_square: Slots, variance: Slots, level: int, scale: float) -> None:
        self.mean_square = mean_square
        self.variance = variance
        self.level = level
        self.scale = scale


def fresh_variance(params: CkksParams, scale: float) -> float:
    """Variance of a slot of a fresh symmetric encryption, encoding included."""
    return (params.degree * ERROR_VARIANCE / 2 + params.degree / 12) / scale**2


class NoiseEvaluator(Evaluator[NoiseValue]):
    """Carries (mean square, error variance) per slot. `known` gives exact mean squares of some values.

    `carried` maps a polynomial's result to its input and the squared derivative there. The powers between them err
    together, so the input's error is set aside while they are followed, and joins at the result.
    With `encoding` false the operands count as exact, for when their rounding is evaluated instead of estimated.
    `squares` remembers the squared operands between plans that share their vectors. With `lanes` these lanes of
    every group are followed by themselves instead of their mean: arrays are (lane groups, lanes) then, and mean squares the
    same for all.
    """

    def __init__(
        self,
        plan: Plan,
        known: Mapping[int, Slots],
        carried: Mapping[int, tuple[int, Slots]] | None = None,
        encoding: bool = True,
        squares: dict[int, Slots] | None = None,
        lanes: Lanes | None = None,
    ) -> None:
        super().__init__(plan)
        self._lanes = lanes
        self._carried = {value: (base, self.spread(slope)) for value, (base, slope) in (carried or {}).items()}
        self._aside: dict[int, Slots] = {}
        self._switched: dict[int, Slots] = {}  # by level, times the scale squared
        self._mapped = {base for base, _ in self._carried.values()}
        self._encoding = encoding
        self._squares = squares if squares is not None else {}
        params = plan.params
        self._known = {value: self.spread(squares) for value, squares in known.items()}
        self._rounding = params.degree * (1 + 2 * params.degree / 3) / 24
        by_lane = mean_terms(params.degree).reshape(plan.lane_groups, plan.batch)
        self._mean_term = by_lane.mean(axis=1) if lanes is None else by_lane[:, lanes]

    def spread(self, groups: Slots) -> Slots:
        """(..., lane groups) as it is combined with what is followed."""
        return groups if self._lanes is None else groups[..., None]

    def finish(self, x: NoiseValue, value: int) -> NoiseValue:
        variance = x.variance
        if value in self._carried:
            base, slope = self._carried[value]
            variance = variance + slope * self._aside[base]
        if value in self._mapped:
            self._aside[value], variance = variance, np.zeros_like(variance)
        if value in self._known or variance is not x.variance:
            return NoiseValue(self._known.get(value, x.mean_square), variance, x.level, x.scale)
        return x

    def _operand(self, plaintext: int) -> tuple[Slots, float, float]:
        """The squared vector over all lane groups, the variance of its rounding, and its scale."""
        plain = self.plan.plaintexts[plaintext]
        vector = self.plan.vectors[plain.vector]
        variance = self._rounding_error(vector, plain.scale) if self._encoding else 0.0
        squared = self._squares.get(plain.vector)
        if squared is None:
            squared = np.resize(vector**2, self.plan.lane_groups if len(vector) > 1 else 1)
            if len(self._squares) * self.plan.lane_groups < _REMEMBERED:
                self._squares[plain.vector] = squared
        return self.spread(squared), variance, plain.scale

    def _rounding_error(self, vector: Slots, scale: float) -> float:
        """Of an operand; that of a constant, a single integer, is known."""
        if len(vector) > 1:
            return len(vector) * self.plan.batch / 6 / scale**2
        return float((constant(float(vector[0]), scale) - vector[0]) ** 2)

    def _switching(self, x: NoiseValue) -> Slots:
        if x.level not in self._switched:
            params, gadget = self.plan.params, Gadget.parse(self.plan.gadget)
            degree, special = params.degree, math.prod(params.special)
            live = [math.prod(params.primes[j] for j in digit) / special for digit in gadget.digits(x.level)]
            # Digits of several primes are centred; SEAL's are not.
            spread = degree / 12 + (self._mean_term / 4 if gadget.name == SEAL else 0.0)
            digits = sum(digit**2 for digit in live) * spread
            self._switched[x.level] = np.asarray(digits * degree * ERROR_VARIANCE / 2 + self._rounding)
        return np.asarray(self._switched[x.level] / x.scale**2)

    def add(self, x: NoiseValue, y: NoiseValue) -> NoiseValue:
        if x is y:  # a value and its error twice, not two errors that may cancel
            return NoiseValue(4 * x.mean_square, 4 * x.variance, x.level, x.scale)
        return NoiseValue(x.mean_square + y.mean_square, x.variance + y.variance, x.level, x.scale)

    def sub(self, x: NoiseValue, y: NoiseValue) -> NoiseValue:
        return self.add(x, y)

    def negate(self, x: NoiseValue) -> NoiseValue:
        return x

    def add_plain(self, x: NoiseValue, plaintext: int) -> NoiseValue:
        squared, variance, _ = self._operand(plaintext)
        return NoiseValue(x.mean_square + squared, x.variance + variance, x.level, x.scale)

    def mul_plain(self, x: NoiseValue, plaintext: int) -> NoiseValue:
        squared, variance, scale = self._operand(plaintext)
        error = x.variance * squared + x.mean_square * variance
        return NoiseValue(x.mean_square * squared, error, x.level, x.scale * scale)

    def mul(self, x: NoiseValue, y: NoiseValue) -> NoiseValue:
        error = x.variance * y.mean_square + y.variance * x.mean_square + x.variance * y.variance
        return NoiseValue(x.mean_square * y.mean_square, error, x.level, x.scale * y.scale)

    def linear_transform(self, op: Op, xs: Sequence[NoiseValue], check: Check = lambda: None) -> list[NoiseValue]:
        """The default expansion."""
        assert op.cells is not None
        rotated = {(j, 0): x for j, x in enumerate(xs)} | {(j, a): self.turned(xs[j], a) for j, a in op.babies}
        scale = xs[0].scale * self.plan.plaintexts[int(op.cells[0, 4])].scale
        shape = np.broadcast_shapes(*(v.shape for x in rotated.values() for v in (x.mean_square, x.variance)))
        constants = ConstantOperands.of(op, self.plan, math.prod(shape), self._encoding)
        if constants is None:
            sums = self._sums_in_place(op, rotated, shape, scale)
        else:
            pairs = {source: (x.mean_square, x.variance) for source, x in rotated.items()}
            found = summed(op, pairs, constants)
            sums = {group: NoiseValue(*pair, xs[0].level, scale) for group, pair in found.items()}
        outputs: dict[int, NoiseValue] = {}
        for i, giant in op.groups:
            part = self.turned(sums[i, giant], giant) if giant else sums[i, giant]
            outputs[i] = self.add(outputs[i], part) if i in outputs else part
        return [outputs[i] for i in range(len(op.outputs))]

    def _sums_in_place(
        self, op: Op, rotated: Mapping[tuple[int, int], NoiseValue], shape: tuple[int, ...], scale: float
    ) -> dict[tuple[int, int], NoiseValue]:
        """Cells are many, and fresh arrays are slow: each sum is accumulated in place."""
        assert op.cells is not None
        level = next(iter(rotated.values())).level
        sums = {g: NoiseValue(np.zeros(shape), np.zeros(shape), level, scale) for g in op.groups}
        scratch = np.empty(shape)
        for i, j, baby, giant, plaintext in op.cells.tolist():
            x, total = rotated[j, baby], sums[i, giant]
            squared, variance, _ = self._operand(plaintext)
            total.variance += np.multiply(x.variance, squared, out=scratch)
            total.mean_square += np.multiply(x.mean_square, squared, out=scratch)
            if variance:
                total.variance += np.multiply(x.mean_square, variance, out=scratch)
        return sums

    def square(self, x: NoiseValue) -> NoiseValue:
        error = 4 * x.variance * x.mean_square + 2 * x.variance**2
        return NoiseValue(3 * x.mean_square**2, error, x.level, x.scale**2)

    def relinearize(self, x: NoiseValue) -> NoiseValue:
        return NoiseValue(x.mean_square, x.variance + self._switching(x), x.level, x.scale)

    def rescale(self, x: NoiseValue) -> NoiseValue:
        scale = x.scale / self.plan.params.primes[x.level]
        return NoiseValue(x.mean_square, x.variance + self._rounding / scale**2, x.level - 1, scale)

    def mod_switch(self, x: NoiseValue) -> NoiseValue:
        return NoiseValue(x.mean_square, x.variance, x.level - 1, x.scale)

    def rotate(self, x: NoiseValue, step: int) -> NoiseValue:
        groups, axis = step // self.plan.batch, -1 if self._lanes is None else -2
        variance = np.roll(x.variance, -groups, axis=axis) + self._switching(x)
        return NoiseValue(np.roll(x.mean_square, -groups, axis=axis), variance, x.level, x.scale)

    def conjugate(self, x: NoiseValue) -> NoiseValue:
        return NoiseValue(x.mean_square, x.variance + self._switching(x), x.level, x.scale)


def slot_variance(
    plan: Plan,
    known: Mapping[int, Slots],
    carried: Mapping[int, tuple[int, Slots]] | None = None,
    encoding: bool = True,
    squares: dict[int, Slots] | None = None,
) -> Slots:
    """Predicted error variance of the first output port, (ciphertexts, samples, lane groups): the mean over a group's lanes.

    `known` gives the mean square of some values per lane group, (groups,) or, to follow single samples, (samples, groups);
    one sample stands for all where nothing depends on them. `carried` is what polynomials do to their inputs' errors,
    `squares` what plans with these vectors share.
    """
    results = _followed(plan, NoiseEvaluator(plan, known, carried, encoding, squares), known)
    return np.stack(np.broadcast_arrays(*(np.atleast_2d(r.variance) for r in results)))


def worst_lane_variance(
    plan: Plan,
    known: Mapping[int, Slots],
    carried: Mapping[int, tuple[int, Slots]] | None = None,
    squares: dict[int, Slots] | None = None,
) -> Slots | None:
    """The same of a batch's noisiest lanes, (ciphertexts, lane groups); None where all lanes err alike.

    Every sample of a batch keeps its lane, and the lanes with a slot next to the root 1 meet all the mean term of key
    switching. `known` and `carried` are means, (1, groups).
    """
    if plan.batch == 1 or plan.lane_groups == 1:
        return None
    terms = mean_terms(plan.params.degree).reshape(plan.lane_groups, plan.batch).sum(axis=0)
    lanes = np.argsort(-terms, kind="stable")[:_WORST_LANES]
    results = _followed(plan, NoiseEvaluator(plan, known, carried, squares=squares, lanes=lanes), known)
    shape = (1, plan.lane_groups, len(lanes))
    return np.stack([np.broadcast_to(r.variance, shape)[0].max(axis=1) for r in results])


@cache
def mean_terms(degree: int) -> Slots:
    """|2 / (1 - zeta_j)|^2 of every slot."""
    exponents = np.array([pow(3, j, 2 * degree) for j in range(degree // 2)], dtype=np.float64)
    terms = np.asarray(1.0 / np.sin(np.pi * exponents / (2 * degree)) ** 2)
    terms.setflags(write=False)
    return terms


def _followed(plan: Plan, evaluator: NoiseEvaluator, known: Mapping[int, Slots]) -> list[NoiseValue]:
    """The plan's results, from freshly encrypted inputs."""
    inputs = []
    for port in plan.inputs:
        for value in port.values:
            kind = plan.values[value]
            fresh = np.full(plan.lane_groups, fresh_variance(plan.params, kind.scale))
            inputs.append(NoiseValue(evaluator.spread(known[value]), evaluator.spread(fresh), kind.level, kind.scale))
    return walk(plan, evaluator, inputs)


def encoding_error(plan: Plan, inputs: Sequence[Slots]) -> Slots:
    """Mean square error of the first output port, (ciphertexts, samples, lane groups), from rounding the operands alone.

    Rounding is known at compile time, so it is evaluated, not estimated. `inputs` are vectors (samples, lane groups),
    one per input ciphertext; the samples fill the lanes, again from the first when they run out.
    """
    count = len(inputs[0])
    inputs = [_in_lanes(x, plan.batch) for x in inputs]
    exact, coarse = ClearEvaluator(plan), ClearEvaluator(plan, rounded_operands(plan))
    levels = [plan.values[v].level for port in plan.inputs for v in port.values]
    runs = [
        walk(plan, e, [e.upload(slots, level) for slots, level in zip(inputs, levels, strict=True)])
        for e in (exact, coarse)
    ]
    squares = (((a.slots - b.slots) ** 2).reshape(-1, plan.lane_groups, plan.batch) for a, b in zip(*runs, strict=True))
    return np.stack([s.transpose(0, 2, 1).reshape(-1, plan.lane_groups)[:count] for s in squares])


def _in_lanes(samples: Slots, batch: int) -> Slots:
    """(samples, lane groups) -> (runs, slots), `batch` samples to a run."""
    runs = -(-len(samples) // batch)
    filled = np.resize(samples, (runs * batch, samples.shape[1]))
    return np.ascontiguousarray(filled.reshape(runs, batch, -1).transpose(0, 2, 1)).reshape(runs, -1)


def rounded_operands(plan: Plan) -> list[Slots]:
    """The vector of every plaintext as encoding leaves it, in plan order."""
    groups: dict[tuple[int, float], list[int]] = {}
    for index, plain in enumerate(plan.plaintexts):
        groups.setdefault((len(plan.repeated(plain)), plain.scale), []).append(index)
    found: dict[int, Slots] = {}
    for (_, scale), indices in groups.items():
        stacked = np.stack([plan.repeated(plan.plaintexts[i]) for i in indices])
        found.update(zip(indices, rounded(stacked, scale), strict=True))
    return [found[i] for i in range(len(plan.plaintexts))]
