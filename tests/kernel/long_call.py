"""A call of the kernel that takes some tenths of a second."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tests.kernel.evaluation import U64, Machine, chain, residues
from tests.kernel.linear import Linear, fused

PARAMS = chain(4096, [40, 36, 36], [45])
CELLS = {True: 8000, False: 120000}  # compact or not: some tenths of a second


@dataclass(frozen=True)
class Long:
    """A transform that takes a while, and one that is the same but for its length."""

    machine: Machine
    transform: Any
    short: Any
    inputs: list[Any]
    keys: dict[int, Any]

    def run(self, task: Any) -> list[U64]:
        return [self.machine.download(y) for y in self.transform.run(self.inputs, self.keys, task)[0]]

    def run_short(self) -> list[U64]:
        return [self.machine.download(y) for y in self.short.run(self.inputs, self.keys, self.machine.kernel.Task())[0]]


@cache
def long_call(kernel: Any, compact: bool = True) -> Long:
    machine = Machine.make(kernel, PARAMS, kernel.default_path())
    rng = np.random.default_rng(1)
    vectors = tuple(rng.uniform(-1, 1, PARAMS.slots) for _ in range(2))
    made = []
    for count in (CELLS[compact], 20):
        cells = sorted((k % 2, k // 2 % 2, k % 2) for k in range(count))
        made.append(
            fused(machine, Linear(1, ((0, 0), (0, 1)), ((0, 0), (0, 3)), tuple(cells), vectors), 2, 2.0**30, compact)
        )
    keys = machine.keys([PARAMS.galois_element(1), PARAMS.galois_element(3)], 2)
    return Long(machine, made[0], made[1], [machine.upload(residues(rng, PARAMS, 2, 2))], keys)
