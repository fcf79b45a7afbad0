"""Linear transforms for tests: any shape, in the clear, by the default expansion, and as the kernel's fused call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from he_runtime.encoding import coefficients, constant
from he_runtime.gadget import Gadget
from he_runtime.params import CkksParams
from tests.kernel.evaluation import U64, Machine, full, secret

Slots = npt.NDArray[np.float64]
ERROR_VARIANCE = 10.5  # of a coefficient of SEAL's error: 21 minus 21 coins
IDENTITY = 1


@dataclass(frozen=True)
class Linear:
    """out_i = sum over groups (i, giant) of rot(sum over cells of operand * rot(in_j, baby), giant).

    `cells` are (group, baby, operand); `operands` vectors of a period that divides the slots, (1,) for a constant.
    """

    inputs: int
    babies: tuple[tuple[int, int], ...]  # (input, step)
    groups: tuple[tuple[int, int], ...]  # (output, step)
    cells: tuple[tuple[int, int, int], ...]
    operands: tuple[Slots, ...]

    @property
    def outputs(self) -> int:
        return 1 + max(i for i, _ in self.groups)

    @property
    def steps(self) -> set[int]:
        return {step for _, step in (*self.babies, *self.groups) if step}

    @property
    def extended(self) -> bool:
        return any(step for _, step in self.babies)


def random_linear(
    rng: np.random.Generator,
    slots: int,
    inputs: int,
    outputs: int,
    babies: list[int],
    giants: list[int],
    density: float,
) -> Linear:
    """Some cells of a full one, at least one in each group; operands of several periods, and constants."""
    its_babies = tuple((j, a) for j in range(inputs) for a in babies)
    groups = tuple((i, b) for i in range(outputs) for b in giants)
    periods = [slots, slots, 8, 1]
    operands = tuple(rng.uniform(-1, 1, periods[k % 4]) for k in range(6))
    chosen = rng.random((len(groups), len(its_babies))) < density
    chosen[np.arange(len(groups)), rng.integers(0, len(its_babies), len(groups))] = True
    cells = tuple((int(g), int(b), int(rng.integers(len(operands)))) for g, b in np.argwhere(chosen))
    return Linear(inputs, its_babies, groups, cells, operands)


def clear(linear: Linear, xs: list[Slots]) -> list[Slots]:
    slots = len(xs[0])
    sums = [np.zeros(slots) for _ in linear.groups]
    for g, b, p in linear.cells:
        j, step = linear.babies[b]
        sums[g] += np.resize(linear.operands[p], slots) * np.roll(xs[j], -step)
    outputs = [np.zeros(slots) for _ in range(linear.outputs)]
    for (i, step), value in zip(linear.groups, sums, strict=True):
        outputs[i] += np.roll(value, -step)
    return outputs


def encode(machine: Machine, vector: Slots, level: int, scale: float, extended: bool, compact: bool) -> Any:
    if len(vector) == 1:
        return machine.constant(level, round(constant(float(vector[0]), scale) * scale), extended)
    return machine.plain(level, coefficients(vector[None], scale)[0], extended, compact)


def fused(machine: Machine, linear: Linear, level: int, scale: float, compact: bool) -> Any:
    """The kernel's Transform."""
    element = machine.params.galois_element
    plains = [encode(machine, v, level, scale, linear.extended, compact) for v in linear.operands]
    return machine.kernel.Transform.make(
        machine.ring,
        level,
        linear.inputs,
        linear.outputs,
        [(j, element(a)) for j, a in linear.babies],
        [(i, element(b)) for i, b in linear.groups],
        np.array(linear.cells, dtype=np.int64),
        plains,
    )


def run(machine: Machine, transform: Any, inputs: list[U64], keys: dict[int, Any]) -> list[U64]:
    found, _ = transform.run([machine.upload(x) for x in inputs], keys, machine.kernel.Task())
    return [machine.download(y) for y in found]


def expanded(
    machine: Machine, linear: Linear, inputs: list[U64], keys: dict[int, Any], level: int, scale: float
) -> list[U64]:
    """One leaf after the other: rotate, multiply, add, rotate, add."""
    kernel, task, element = machine.kernel, machine.kernel.Task(), machine.params.galois_element

    def turned(x: Any, step: int) -> Any:
        return kernel.apply_galois(machine.ring, x, element(step), keys[element(step)], task) if step else x

    def added(x: Any, y: Any) -> Any:
        return kernel.add(machine.ring, x, y, task)

    uploaded = [machine.upload(x) for x in inputs]
    rotated = [turned(uploaded[j], a) for j, a in linear.babies]
    plains = [encode(machine, v, level, scale, False, False) for v in linear.operands]
    outputs: dict[int, list[Any]] = {}
    for g, (i, step) in enumerate(linear.groups):
        terms = [kernel.mul_plain(machine.ring, rotated[b], plains[p], task) for k, b, p in linear.cells if k == g]
        outputs.setdefault(i, []).append(turned(reduce(added, terms), step))
    return [machine.download(reduce(added, outputs[i])) for i in range(linear.outputs)]


def encrypt(params: CkksParams, xs: list[Slots], level: int, scale: float) -> list[U64]:
    return [full(params, secret(params).encrypt(x, level, scale)) for x in xs]


def deviation(linear: Linear, params: CkksParams, gadget: str, level: int, scale: float, plain_scale: float) -> float:
    """Standard deviation, in slots, that no output's error exceeds for inputs and operands in [-1, 1].

    Per coefficient of a ciphertext, in units of its last place: a fresh one has SEAL's error and the encoding's
    rounding, 1/12; a switch adds to it N times the sum of the centred digits' D^2/12 times the error of the key, over
    P^2; every division by P adds (1 + 2N/3)/12 for a ternary secret. A slot's real part sums N such, halved. Operands,
    being at most 1, multiply at most by 1; the rounding of an operand of N/2 slots adds N/12 per slot.
    """
    n, special = params.degree, math.prod(params.special)
    digits = [math.prod(params.primes[j] for j in digit) for digit in Gadget.parse(gadget).digits(level)]
    switched = sum((d / special) ** 2 for d in digits) * n * ERROR_VARIANCE / 12
    divided = (1 + 2 * n / 3) / 12
    rotated = any(a for _, a in linear.babies)
    each = n / 2 * (ERROR_VARIANCE + 1 / 12 + rotated * switched) / scale**2 + n / 12 / plain_scale**2
    giants = sum(1 for _, b in linear.groups if b)
    steps = n / 2 * ((switched + divided) * giants + divided * linear.outputs) / (scale * plain_scale) ** 2
    return math.sqrt(len(linear.cells) * each + steps)
