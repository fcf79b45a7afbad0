"""A small ring and one good object of each kind, and rings that are not its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from he_runtime.gadget import SEAL
from he_runtime.params import CkksParams
from tests.kernel.evaluation import Machine, chain, residues

N = 1024
HOME = (SEAL, chain(N, [40, 36, 36], [45]))
FOREIGN = {
    "shorter": (SEAL, chain(2 * N, [40, 36, 36], [45])),
    "fewer primes": (SEAL, CkksParams(N, HOME[1].primes[:2], HOME[1].special, insecure=True)),
    "more primes": (SEAL, chain(N, [40, 36, 36, 30], [45])),
    "other primes": (SEAL, chain(N, [50, 50, 50], [60])),
    "another gadget": ("hybrid-2", chain(N, [40, 36, 36], [45, 44])),
}


@dataclass(frozen=True)
class World:
    """A ring and one good object of each kind at its level 1 and below."""

    machine: Machine

    @property
    def kernel(self) -> Any:
        return self.machine.kernel

    @property
    def ring(self) -> Any:
        return self.machine.ring

    def task(self) -> Any:
        return self.kernel.Task()

    def cipher(self, level: int = 1, polys: int = 2) -> Any:
        return self.machine.upload(residues(np.random.default_rng(1), self.machine.params, level, polys))

    def plain(self, level: int = 1, extended: bool = True, compact: bool = False) -> Any:
        return self.machine.plain(level, np.arange(16.0), extended, compact)

    def key(self, level: int = 1, element: int = 3) -> Any:
        return self.machine.key(element, level)

    def transform(
        self, babies: Any = None, groups: Any = None, cells: Any = None, plains: Any = None, **other: Any
    ) -> Any:
        return self.kernel.Transform.make(
            other.get("ring", self.ring),
            other.get("level", 1),
            other.get("inputs", 2),
            other.get("outputs", 1),
            [(0, 1), (1, 3)] if babies is None else babies,
            [(0, 3)] if groups is None else groups,
            np.array([(0, 0, 0), (0, 1, 0)] if cells is None else cells, dtype=other.get("dtype", np.int64)),
            [self.plain()] if plains is None else plains,
        )

    def run(self, inputs: Any = None, keys: Any = None) -> Any:
        return self.transform().run(
            [self.cipher(), self.cipher()] if inputs is None else inputs,
            {3: self.key()} if keys is None else keys,
            self.task(),
        )


def world(kernel: Any, home: tuple[str, CkksParams] = HOME) -> World:
    gadget, params = home
    return World(Machine.make(kernel, params, kernel.default_path(), gadget))
