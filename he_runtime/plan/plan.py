"""Plan: the exact homomorphic program of one model, immutable and digested.

Levels, scales, rotations, layouts and keys are decided here once; pricing, simulating and executing walk the same ops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..client_spec import ClientSpec, SlotMap, TensorSpec
from ..encoding import constant
from ..params import CkksParams
from ..ring import RELINEARIZATION, KeyRequest, KeySetSpec
from .ops import Kind, Op, Plaintext, ValueType

__all__ = ["SHAPE", "STRUCTURE", "LayerInfo", "Plan", "Port"]

STRUCTURE, SHAPE = "structure", "shape"  # what a plan discloses

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Port:
    """A named tensor at the plan's border: its ciphertext values and where its elements lie in them."""

    name: str
    shape: tuple[int, ...]
    values: tuple[int, ...]
    slot_map: SlotMap = field(repr=False, compare=False)


@dataclass(frozen=True)
class LayerInfo:
    """What a listing says of a layer: how it is laid out, and the largest value that calibration saw."""

    name: str
    kind: str
    layout: str
    magnitude: float


@dataclass(frozen=True)
class Plan:
    """Ops in order, the type of every value, the plaintext operands, and the border.

    `segments` are the indices of ops that start a segment; levels only fall inside one. `sigma` is the predicted
    standard deviation of encrypted minus clear over all output elements, `error_bound` what hardly any output of a
    calibrated input exceeds (he_runtime/error_bound.py). `batch` samples share every ciphertext, interleaved:
    lane group v holds slots v * batch .. v * batch + batch - 1, slot maps and vectors count lane groups. `client` holds what the client spec needs beyond
    the border (normalization, range, labels, post-processing). `detours` maps a rotation step without a key to two that
    have one. `disclosure` is what clients may infer of the model: the structure of its zeros, or its shape only.
    """

    model_name: str
    model_digest: str
    params: CkksParams
    ops: tuple[Op, ...] = field(repr=False)
    values: tuple[ValueType, ...] = field(repr=False)
    vectors: tuple[Vector, ...] = field(repr=False)
    plaintexts: tuple[Plaintext, ...] = field(repr=False)
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[LayerInfo, ...] = ()
    segments: tuple[int, ...] = (0,)
    gadget: str = "seal"
    sigma: float = 0.0
    error_bound: float = 0.0
    batch: int = 1
    client: Mapping[str, Any] = field(default_factory=dict)
    detours: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    disclosure: str = STRUCTURE

    def route(self, step: int) -> tuple[int, ...]:
        """The rotations that a rotation by `step` is made of."""
        return self.detours.get(step, (step,))

    @cached_property
    def last_use(self) -> tuple[int, ...]:
        """For every value, the index of the last op that reads it (len(ops) for outputs)."""
        last = [-1] * len(self.values)
        for index, op in enumerate(self.ops):
            for value in op.inputs:
                last[value] = index
        for port in self.outputs:
            for value in port.values:
                last[value] = len(self.ops)
        return tuple(last)

    @cached_property
    def keys(self) -> KeySetSpec:
        """The exact evaluation keys: every element that some op uses, cut to the highest level it is used at."""
        levels: dict[int, int] = {}

        def use(element: int, level: int) -> None:
            levels[element] = max(levels.get(element, -1), level)

        def turn(step: int, level: int) -> None:
            for part in self.route(step):
                use(self.params.galois_element(part), level)

        for op in self.ops:
            level = self.values[op.inputs[0]].level
            if op.kind is Kind.RELINEARIZE:
                use(RELINEARIZATION, level)
            elif op.kind is Kind.ROTATE:
                turn(op.step, level)
            elif op.kind is Kind.CONJUGATE:
                use(self.params.conjugation_element, level)
            elif op.kind is Kind.LINEAR_TRANSFORM:
                for step in {a for _, a in op.babies} | {b for _, b in op.groups if b}:
                    turn(step, level)
        return KeySetSpec(tuple(KeyRequest(e, levels[e]) for e in sorted(levels)), self.gadget)

    @cached_property
    def extended_plaintexts(self) -> frozenset[int]:
        """Operands of fused transforms with baby steps: their products are summed under the special primes too."""
        found: set[int] = set()
        for op in self.ops:
            if op.cells is not None and op.babies and self.is_direct(op):
                found.update(op.cells[:, 4].tolist())
        return frozenset(found)

    @cached_property
    def counts(self) -> Counter[tuple[str, int]]:
        """Planned leaf operations by (leaf, level), in closed form; an executor's counters must equal this."""
        return self.counts_on("")

    def counts_on(self, backend: str) -> Counter[tuple[str, int]]:
        """The same on a backend that may have a fused transform (plan/counts.py)."""
        from .counts import plan_counts

        return plan_counts(self, backend)

    @cached_property
    def signs(self) -> Mapping[int, int]:
        """Operands that are encoded as the integer 1 or -1: plaintext -> which. In a transform they cost no product.

        None in a plan that tells the shape only: there the work must not depend on what the operands are.
        """
        found: dict[int, int] = {}
        if self.disclosure == SHAPE:
            return found
        for index, plain in enumerate(self.plaintexts):
            vector = self.vectors[plain.vector]
            if len(vector) == 1:
                integer = round(constant(float(vector[0]), plain.scale) * plain.scale)
                if abs(integer) == 1:
                    found[index] = integer
        return found

    def is_direct(self, op: Op) -> bool:
        """Whether an op is a linear transform all of whose steps have keys of their own: it can run as one fused call."""
        if op.kind is not Kind.LINEAR_TRANSFORM:
            return False
        return all(len(self.route(step)) == 1 for _, step in (*op.babies, *op.groups) if step)

    def repeated(self, plaintext: Plaintext) -> Vector:
        """One period of an operand in slots: every lane group's value once per sample; (1,) for a constant."""
        vector = self.vectors[plaintext.vector]
        return vector if self.batch == 1 or len(vector) == 1 else np.repeat(vector, self.batch)

    def vector(self, plaintext: Plaintext) -> Vector:
        """The full slot vector (slots,) of an operand."""
        return np.resize(self.repeated(plaintext), self.params.slots)

    def tensor_spec(self, port: Port) -> TensorSpec:
        value = self.values[port.values[0]]
        return TensorSpec(port.name, port.shape, port.slot_map, value.level, value.scale, self.batch)

    @property
    def lane_groups(self) -> int:
        """Slots over batch: the positions that one sample has in a ciphertext."""
        return self.params.slots // self.batch

    def client_spec(self, version: str = "1") -> ClientSpec:
        """All that a client may know of this plan."""
        described: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.client.items()}
        return ClientSpec(
            model=self.model_name,
            version=version,
            plan_digest=self.digest,
            params=self.params,
            keys=self.keys,
            input=self.tensor_spec(self.inputs[0]),
            output=self.tensor_spec(self.outputs[0]),
            error_bound=self.error_bound,
            **described,
        )

    @cached_property
    def digest(self) -> str:
        """sha256 over the stored form."""
        from .store import plan_digest

        return plan_digest(self)

    def save(self, directory: Path | str) -> Path:
        """Write plan.json, vectors.safetensors and DIGEST into `directory`."""
        from .store import save_plan

        return save_plan(self, Path(directory))

    @classmethod
    def load(cls, directory: Path | str) -> Plan:
        """Read, check the digest and verify; PlanError for anything foreign, newer, truncated or altered."""
        from .store import load_plan

        return load_plan(Path(directory))

    def listing(self) -> str:
        """The plan as a person reads it: border, parameters, then every op with its level and scale."""
        from .listing import plan_listing

        return plan_listing(self)
