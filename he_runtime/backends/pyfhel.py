"""SEAL evaluation through Pyfhel: the second opinion on every plan, with the same client keys as `tenseal`.

Pyfhel keeps one set of evaluation keys per instance, so each client's keys live in an instance of their own; plaintexts
and ciphertexts are shared between instances of one parameter set. It neither makes keys nor decrypts here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..encoding import constant, faintest
from ..errors import KeyMismatch
from ..gadget import require_seal
from ..params import CkksParams
from ..plan import Plan
from ..ring import RELINEARIZATION, CiphertextData, EvaluationKeys, KeyRecord
from .base import Evaluator
from .plaintexts import PlaintextStore
from .pyfhel_bridge import PyfhelContext, check_keys, galois_permutation, make_context, pyfhel

__all__ = ["PyfhelBackend", "PyfhelEvaluator", "PyfhelKeys", "PyfhelValue"]


@dataclass(frozen=True)
class PyfhelValue:
    """A PyCtxt and its level, which Pyfhel does not tell."""

    ct: Any
    level: int


@dataclass(frozen=True)
class PyfhelKeys:
    """A client's evaluation keys inside a Pyfhel instance of their own.

    `borrowed_step` is the rotation under whose element the conjugation key is filed, 0 without such a key.
    """

    context: PyfhelContext
    elements: frozenset[int]
    borrowed_step: int
    byte_size: int


class PyfhelBackend:
    """One plan's context and encoded plaintexts, shared by all requests; makes an evaluator per run."""

    name = "pyfhel"

    def __init__(self, plan: Plan) -> None:
        require_seal(plan.gadget, self.name)
        self.plan = plan
        self.context = make_context(plan.params)
        self._plaintexts = PlaintextStore(plan, self._encode)
        self.plaintext = self._plaintexts.__getitem__

    def _encode(self, index: int) -> Any:
        plain = self.plan.plaintexts[index]
        vector = self.plan.vectors[plain.vector]
        if len(vector) == 1:
            return self.context.encode(np.array([constant(float(vector[0]), plain.scale)]), plain.level, plain.scale)
        encoded = self.context.encode(self.plan.vector(plain), plain.level, plain.scale)
        if not encoded.is_zero():
            return encoded
        return self.context.encode(np.array([faintest(vector, plain.scale)]), plain.level, plain.scale)

    def load_keys(self, keys: EvaluationKeys) -> PyfhelKeys:
        """Validated records -> SEAL keys; KeyMismatch when the plan needs one that is absent or cut too low."""
        params = self.plan.params
        keys.require(self.plan.keys, params)
        wanted = {r.element: keys.records[r.element] for r in self.plan.keys.requests}
        check_keys(params, wanted)
        galois = {e: r for e, r in wanted.items() if e not in (RELINEARIZATION, params.conjugation_element)}
        borrowed_step = 0
        if params.conjugation_element in wanted:
            borrowed_step = _free_step(params, galois)
            galois[params.galois_element(borrowed_step)] = wanted[params.conjugation_element]
        context = make_context(params)
        context.load_keys(galois, wanted.get(RELINEARIZATION))
        # Padded to the full chain, whatever level a record was cut to.
        full = 2 * len(params.primes) * (len(params.primes) + 1) * params.degree * 8
        return PyfhelKeys(context, frozenset(wanted), borrowed_step, full * len(wanted))

    def evaluator_for(self, keys: PyfhelKeys) -> PyfhelEvaluator:
        return PyfhelEvaluator(self, keys)


def _free_step(params: CkksParams, taken: dict[int, KeyRecord]) -> int:
    for step in range(1, params.slots):
        if params.galois_element(step) not in taken:
            return step
    raise KeyMismatch("cannot place the conjugation key: the plan has keys for every rotation; try another backend")


class PyfhelEvaluator(Evaluator[PyfhelValue]):
    """Leaves on Pyfhel ciphertexts."""

    def __init__(self, backend: PyfhelBackend, keys: PyfhelKeys) -> None:
        super().__init__(backend.plan)
        self._plaintext = backend.plaintext
        self._keys = keys
        self._he = keys.context.he
        self._copy = pyfhel().PyCtxt

    def upload(self, data: CiphertextData) -> PyfhelValue:
        return PyfhelValue(self._keys.context.upload_ciphertext(data), data.level)

    def download(self, x: PyfhelValue) -> CiphertextData:
        return self._keys.context.download_ciphertext(x.ct)

    def _call(self, leaf: str, function: Callable[..., Any], x: PyfhelValue, *arguments: Any) -> PyfhelValue:
        self.counters[leaf, x.level] += 1
        return PyfhelValue(function(x.ct, *arguments, in_new_ctxt=True), x.level)

    def _call_in_place(self, leaf: str, function: Callable[[Any], None], x: PyfhelValue, drop: int = 0) -> PyfhelValue:
        self.counters[leaf, x.level] += 1
        result = self._copy(copy_ctxt=x.ct)
        function(result)
        return PyfhelValue(result, x.level - drop)

    def finish(self, x: PyfhelValue, value: int) -> PyfhelValue:
        # SEAL recomputes scales in floating point; the plan's are the ones that count (equal to 2^-40).
        x.ct.scale = self.plan.values[value].scale
        return x

    def _require(self, element: int, what: str) -> None:
        # Without its key Pyfhel would make up another one, or compose rotations from others.
        if element not in self._keys.elements:
            raise KeyMismatch(
                f"cannot {what}: got no key for Galois element {element}; try uploading the key set of the client spec"
            )

    def add(self, x: PyfhelValue, y: PyfhelValue) -> PyfhelValue:
        return self._call("add", self._he.add, x, y.ct)

    def sub(self, x: PyfhelValue, y: PyfhelValue) -> PyfhelValue:
        return self._call("sub", self._he.sub, x, y.ct)

    def negate(self, x: PyfhelValue) -> PyfhelValue:
        return self._call("negate", self._he.negate, x)

    def reread(self, x: PyfhelValue, scale: float) -> PyfhelValue:
        copy = self._copy(copy_ctxt=x.ct)
        copy.scale = scale
        return PyfhelValue(copy, x.level)

    def add_plain(self, x: PyfhelValue, plaintext: int) -> PyfhelValue:
        return self._call("add_plain", self._he.add_plain, x, self._plaintext(plaintext))

    def mul_plain(self, x: PyfhelValue, plaintext: int) -> PyfhelValue:
        return self._call("mul_plain", self._he.multiply_plain, x, self._plaintext(plaintext))

    def mul(self, x: PyfhelValue, y: PyfhelValue) -> PyfhelValue:
        return self._call("mul", self._he.multiply, x, y.ct)

    def square(self, x: PyfhelValue) -> PyfhelValue:
        return self._call("square", self._he.square, x)

    def relinearize(self, x: PyfhelValue) -> PyfhelValue:
        self._require(RELINEARIZATION, "relinearize")
        return self._call_in_place("relinearize", self._he.relinearize, x)

    def rescale(self, x: PyfhelValue) -> PyfhelValue:
        return self._call_in_place("rescale", self._he.rescale_to_next, x, drop=1)

    def mod_switch(self, x: PyfhelValue) -> PyfhelValue:
        return self._call_in_place("mod_switch", self._he.mod_switch_to_next_ctxt, x, drop=1)

    def rotate(self, x: PyfhelValue, step: int) -> PyfhelValue:
        self._require(self.plan.params.galois_element(step), f"rotate by {step}")
        return self._call("rotate", self._he.rotate, x, step)

    def conjugate(self, x: PyfhelValue) -> PyfhelValue:
        """Pyfhel offers no conjugation under CKKS, but one automorphism is a permutation and a key switch.

        With g the element of a rotation that the plan does not use, sigma_conj = sigma_g after sigma_(conj / g). The
        second is done here on residues; the rotation does the first, and the key filed under g switches sigma_conj(s).
        """
        params, step = self.plan.params, self._keys.borrowed_step
        self._require(params.conjugation_element, "conjugate")
        inverse = pow(params.galois_element(step), -1, 2 * params.degree)
        order = galois_permutation(params.degree, params.conjugation_element * inverse % (2 * params.degree))
        data = self.download(x)
        polys = tuple(np.ascontiguousarray(p[:, order]) for p in data.polys if isinstance(p, np.ndarray))
        permuted = self.upload(CiphertextData(data.level, data.scale, polys))
        return self._call("conjugate", self._he.rotate, permuted, step)
