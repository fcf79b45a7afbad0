"""Evaluation by the project's own kernel: threads, hoisting, no interpreter's lock, and no secret in sight.

Leaves are bit for bit SEAL's. LINEAR_TRANSFORM is one fused call: each input is cut into digits once for all baby
steps, sums stay in the extended basis, one division per giant step and one pair per output. A step that has no key
of its own (a detour) is turned before or after by way of others, so such a transform takes the default expansion.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..encoding import coefficients, constant, faintest
from ..errors import BackendUnavailable, CiphertextMismatch, KeyMismatch, ParameterError, Reason
from ..gadget import Gadget
from ..kernel import status
from ..plan import SHAPE, Op, Plan
from ..plan.counts import product_leaf
from ..ring import RELINEARIZATION, CiphertextData, EvaluationKeys, KeyRecord, SeededPoly
from ..wire.expansion import expand_seed, expanded
from .base import Check, Evaluator, no_check
from .shared_operands import SharedOperands, shapes

__all__ = ["NativeBackend", "NativeEvaluator"]

_PLAINTEXT_BYTES = 4 << 30  # of operands as full residues; beyond it they stay integers, transformed at each use
_IDENTITY = 1  # the Galois element of no automorphism


@dataclass(frozen=True)
class NativeKeys:
    """A client's evaluation keys in the kernel's order, by Galois element (0: relinearization)."""

    by_element: dict[int, Any]
    byte_size: int


@dataclass(frozen=True)
class NativeValue:
    """A kernel ciphertext and its scale, which the kernel does not need."""

    data: Any
    scale: float


class NativeBackend:
    """One plan's tables, encoded plaintexts and transforms, shared by all requests and threads.

    With `share`, a directory of this machine's, encoded plaintexts are mapped from a file in it that other processes map
    too. Where that fails, as on a full disk, each process has its own, and `unshared` says why.
    """

    name = "native"

    def __init__(self, plan: Plan, plaintext_bytes: int = _PLAINTEXT_BYTES, share: Path | None = None) -> None:
        found = status()
        if not found.available:
            raise BackendUnavailable(f"cannot use the native backend: {found.reason}; try {found.remedy or 'tenseal'}")
        self.kernel: Any = importlib.import_module("he_runtime.kernel._kernel")
        self.plan = plan
        params = plan.params
        alpha = Gadget.parse(plan.gadget).alpha
        try:
            self.ring = self.kernel.Ring(
                params.degree, list(params.primes), list(params.special), alpha, self.kernel.default_path()
            )
        except ValueError as error:
            raise ParameterError(f"cannot use {params.name} with the native backend: {error}") from error
        self._extended = plan.extended_plaintexts
        self._compact = _bytes(plan) > plaintext_bytes
        self._plaintexts: dict[int, Any] = {}
        self._shared: SharedOperands | None = None
        self.unshared = ""
        if share is not None and not self._compact:
            try:
                self._shared = SharedOperands.open(share, plan, self._fill)
            except OSError as error:
                self.unshared = error.strerror or str(error)
        self.transforms = {id(op): self._transform(op) for op in plan.ops if plan.is_direct(op)}

    def plaintext(self, index: int) -> Any:
        """The k-th plaintext of the plan, encoded at its first use."""
        found = self._plaintexts.get(index)
        if found is None:
            shared = self._shared is not None and index in self._shared
            found = self._plaintexts[index] = self._borrow(index) if shared else self._encode(index)
        return found

    def _borrow(self, index: int) -> Any:
        assert self._shared is not None
        level, extended = self.plan.plaintexts[index].level, index in self._extended
        return self.kernel.borrow(self.ring, level, extended, self._shared[index])

    def _fill(self, index: int, residues: npt.NDArray[np.uint64]) -> None:
        self.kernel.residues(self.ring, self._encode(index), residues)

    def _encode(self, index: int) -> Any:
        plain = self.plan.plaintexts[index]
        vector = self.plan.vectors[plain.vector]
        extended = index in self._extended
        if len(vector) == 1:
            return self._constant(constant(float(vector[0]), plain.scale), plain.level, plain.scale, extended)
        values = coefficients(self.plan.repeated(plain)[None], plain.scale)[0]
        if not values.any():
            faint = faintest(vector, plain.scale)
            if self.plan.disclosure != SHAPE:
                return self._constant(faint, plain.level, plain.scale, extended)
            values[0] = round(faint * plain.scale)  # in the form of all others, which takes as long to read
        return self.kernel.encode(self.ring, plain.level, extended, values, self._compact)

    def _constant(self, value: float, level: int, scale: float, extended: bool) -> Any:
        params = self.plan.params
        rows = (*params.primes[: level + 1], *(params.special if extended else ()))
        integer = round(value * scale)
        return self.kernel.constant(self.ring, level, extended, [integer % q for q in rows])

    def _transform(self, op: Op) -> Any:
        assert op.cells is not None
        element = self.plan.params.galois_element
        babies = sorted({(int(j), int(a)) for j, a in op.cells[:, 1:3]})
        groups = list(op.groups)
        baby_of, group_of = {b: k for k, b in enumerate(babies)}, {g: k for k, g in enumerate(groups)}
        cells = [(group_of[i, b], baby_of[j, a], plain) for i, j, a, b, plain in op.cells.tolist()]
        cells.sort(key=lambda cell: cell[:2])
        used = {plain: k for k, plain in enumerate(dict.fromkeys(cell[2] for cell in cells))}
        return self.kernel.Transform.make(
            self.ring,
            self.plan.values[op.inputs[0]].level,
            len(op.inputs),
            len(op.outputs),
            [(j, element(a)) for j, a in babies],
            [(i, element(b)) for i, b in groups],
            np.array([(g, b, used[p]) for g, b, p in cells], dtype=np.int64),
            [self.plaintext(p) for p in used],
        )

    def load_keys(self, keys: EvaluationKeys) -> NativeKeys:
        """Validated records -> the kernel's keys; KeyMismatch when the plan needs one that is absent or cut too low."""
        keys.require(self.plan.keys, self.plan.params)
        loaded = {r.element: self._key(keys.records[r.element]) for r in self.plan.keys.requests}
        return NativeKeys(loaded, sum(int(key.bytes) for key in loaded.values()))

    def _key(self, record: KeyRecord) -> Any:
        params = self.plan.params
        rows = [*range(record.level + 1), *range(len(params.primes), len(params.primes) + len(params.special))]
        chain = (*params.primes, *params.special)
        digits = [
            (b, expand_seed(a, chain, params.degree)[rows] if isinstance(a, SeededPoly) else a)
            for b, a in record.digits
        ]
        try:
            return self.kernel.make_key(self.ring, record.level, max(record.element, _IDENTITY), digits)
        except ValueError as error:
            raise KeyMismatch(
                f"cannot use the key for element {record.element}: {error}; try making it again",
                Reason.KEY_PARAMETERS_DIFFER,
            ) from error

    def evaluator_for(self, keys: NativeKeys) -> NativeEvaluator:
        return NativeEvaluator(self, keys)


class NativeEvaluator(Evaluator[NativeValue]):
    """Leaves and fused transforms on kernel ciphertexts."""

    def __init__(self, backend: NativeBackend, keys: NativeKeys) -> None:
        super().__init__(backend.plan)
        self._backend = backend
        self._keys = keys
        self._kernel = backend.kernel
        self._ring = backend.ring
        self._task = backend.kernel.Task()
        # Of fused transforms, all threads together.
        self.stage_seconds: defaultdict[tuple[str, int], float] = defaultdict(float)

    def upload(self, data: CiphertextData) -> NativeValue:
        full = expanded(data, self.plan.params)
        try:
            return NativeValue(self._kernel.upload(self._ring, data.level, full.polys), data.scale)
        except ValueError as error:
            raise CiphertextMismatch(f"cannot use a ciphertext: {error}", Reason.SIZE_MISMATCH) from error

    def download(self, x: NativeValue) -> CiphertextData:
        residues = np.empty((x.data.size, x.data.level + 1, self.plan.params.degree), dtype=np.uint64)
        self._kernel.download(x.data, residues)
        return CiphertextData(x.data.level, x.scale, tuple(residues))

    def finish(self, x: NativeValue, value: int) -> NativeValue:
        return NativeValue(x.data, self.plan.values[value].scale)

    def _call(self, leaf: str, function: Callable[..., Any], x: NativeValue, *arguments: Any) -> NativeValue:
        result = function(self._ring, x.data, *arguments, self._task)
        self.counters[leaf, x.data.level] += 1
        return NativeValue(result, x.scale)

    def add(self, x: NativeValue, y: NativeValue) -> NativeValue:
        return self._call("add", self._kernel.add, x, y.data)

    def sub(self, x: NativeValue, y: NativeValue) -> NativeValue:
        return self._call("sub", self._subtracted, x, y.data)

    def negate(self, x: NativeValue) -> NativeValue:
        return self._call("negate", self._negated, x)

    def _subtracted(self, ring: Any, x: Any, y: Any, task: Any) -> Any:
        return self._kernel.add(ring, x, self._negated(ring, y, task), task)

    def _negated(self, ring: Any, x: Any, task: Any) -> Any:
        """The kernel has no subtraction; minus one is a constant of it."""
        minus = self._kernel.constant(ring, x.level, False, [q - 1 for q in self.plan.params.primes[: x.level + 1]])
        return self._kernel.mul_plain(ring, x, minus, task)

    def add_plain(self, x: NativeValue, plaintext: int) -> NativeValue:
        return self._call("add_plain", self._kernel.add_plain, x, self._backend.plaintext(plaintext))

    def mul_plain(self, x: NativeValue, plaintext: int) -> NativeValue:
        return self._call("mul_plain", self._kernel.mul_plain, x, self._backend.plaintext(plaintext))

    def mul(self, x: NativeValue, y: NativeValue) -> NativeValue:
        return self._call("mul", self._kernel.mul, x, y.data)

    def square(self, x: NativeValue) -> NativeValue:
        return self._call("square", self._kernel.square, x)

    def relinearize(self, x: NativeValue) -> NativeValue:
        return self._call("relinearize", self._kernel.relinearize, x, self._key(RELINEARIZATION))

    def rescale(self, x: NativeValue) -> NativeValue:
        return self._call("rescale", self._kernel.rescale, x)

    def mod_switch(self, x: NativeValue) -> NativeValue:
        return self._call("mod_switch", self._kernel.mod_switch, x)

    def rotate(self, x: NativeValue, step: int) -> NativeValue:
        element = self.plan.params.galois_element(step)
        return self._call("rotate", self._kernel.apply_galois, x, element, self._key(element))

    def conjugate(self, x: NativeValue) -> NativeValue:
        element = self.plan.params.conjugation_element
        return self._call("conjugate", self._kernel.apply_galois, x, element, self._key(element))

    def _key(self, element: int) -> Any:
        try:
            return self._keys.by_element[element]
        except KeyError:
            what = "relinearize" if element == RELINEARIZATION else f"apply Galois element {element}"
            raise KeyMismatch(
                f"cannot {what}: got no key for it; try uploading the key set of the client spec"
            ) from None

    def linear_transform(self, op: Op, xs: Sequence[NativeValue], check: Check = no_check) -> list[NativeValue]:
        transform = self._backend.transforms.get(id(op))
        if transform is None:
            return super().linear_transform(op, xs, check)
        task = self._kernel.Task(None if check is no_check else check)
        found, work = transform.run([x.data for x in xs], self._keys.by_element, task)
        self._count(op, xs[0].data.level, work)
        return [NativeValue(y, xs[0].scale) for y in found]

    def _count(self, op: Op, level: int, work: dict[str, int]) -> None:
        """What the kernel says that it did, in leaves of the fused expansion."""
        params = self.plan.params
        live = level + 1
        rows = live + len(params.special)
        products = work["product_words"] + work["skipped_words"]
        done = {
            "decompose": ("decompose_ns", work["decompositions"], 1),
            "hoisted": ("hoisted_ns", work["hoisted_words"], rows * params.degree),
            product_leaf(self.plan, op): ("product_ns", products, (rows if op.babies else live) * params.degree),
            "giant": ("giant_ns", work["giant_words"], rows * params.degree),
            "divide": ("divide_ns", work["divisions"], 2),
        }
        for leaf, (stage, amount, unit) in done.items():
            whole, rest = divmod(amount, unit)
            assert not rest, f"the kernel left a {leaf} unfinished"
            if whole:
                self.counters[leaf, level] += whole
                self.stage_seconds[leaf, level] += work[stage] / 1e9


def _bytes(plan: Plan) -> int:
    """Of all operands as full residues."""
    return sum(rows * degree for rows, degree in shapes(plan).values()) * 8
