"""SEAL evaluation through tenseal.sealapi: one SEAL call per op, no auto-rescaling, no secret in sight.

Every SEAL call goes through `_call`, which counts it. SEAL's bindings hold the GIL, so one process evaluates one
request at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..encoding import constant, faintest
from ..errors import KeyMismatch
from ..gadget import require_seal
from ..plan import Plan
from ..ring import CiphertextData, EvaluationKeys
from .base import Evaluator
from .plaintexts import PlaintextStore
from .seal_bridge import download_ciphertext, make_context, parms_id, sealapi, upload_ciphertext, upload_keys

__all__ = ["TensealBackend", "TensealEvaluator"]


@dataclass(frozen=True)
class TensealKeys:
    """A client's evaluation keys as SEAL objects."""

    galois: Any
    relin: Any
    byte_size: int


class TensealBackend:
    """One plan's context and encoded plaintexts, shared by all requests; makes an evaluator per run."""

    name = "tenseal"

    def __init__(self, plan: Plan) -> None:
        require_seal(plan.gadget, self.name)
        seal = sealapi()
        self.plan = plan
        self.context = make_context(plan.params)
        self.evaluator = seal.Evaluator(self.context)
        self.parms_ids = [parms_id(self.context, level) for level in range(plan.params.max_level + 1)]
        self._encoder = seal.CKKSEncoder(self.context)
        self._plaintexts = PlaintextStore(plan, self._encode)
        self.plaintext = self._plaintexts.__getitem__

    def _encode(self, index: int) -> Any:
        plain = self.plan.plaintexts[index]
        vector = self.plan.vectors[plain.vector]
        target = sealapi().Plaintext()
        # A constant is encoded as an integer: exact, and without a transform.
        value = constant(float(vector[0]), plain.scale) if len(vector) == 1 else self.plan.vector(plain).tolist()
        self._encoder.encode(value, self.parms_ids[plain.level], plain.scale, target)
        if target.is_zero():
            self._encoder.encode(faintest(vector, plain.scale), self.parms_ids[plain.level], plain.scale, target)
        return target

    def load_keys(self, keys: EvaluationKeys) -> TensealKeys:
        """Validated records -> SEAL keys; KeyMismatch when the plan needs one that is absent or cut too low."""
        keys.require(self.plan.keys, self.plan.params)
        wanted = {r.element: keys.records[r.element] for r in self.plan.keys.requests}
        galois, relin = upload_keys(self.context, self.plan.params, wanted)
        # Padded to the full chain, whatever level a record was cut to.
        full = 2 * len(self.plan.params.primes) * (len(self.plan.params.primes) + 1) * self.plan.params.degree * 8
        return TensealKeys(galois, relin, full * len(wanted))

    def evaluator_for(self, keys: TensealKeys) -> TensealEvaluator:
        return TensealEvaluator(self, keys)


class TensealEvaluator(Evaluator[Any]):
    """Leaves on SEAL ciphertexts."""

    def __init__(self, backend: TensealBackend, keys: TensealKeys) -> None:
        super().__init__(backend.plan)
        self._backend = backend
        self._keys = keys
        self._seal = backend.evaluator
        self._new = sealapi().Ciphertext

    def upload(self, data: CiphertextData) -> Any:
        return upload_ciphertext(self._backend.context, self.plan.params, data)

    def download(self, x: Any) -> CiphertextData:
        return download_ciphertext(self._backend.context, self.plan.params, x)

    def _call(self, leaf: str, function: Callable[..., None], x: Any, *arguments: Any) -> Any:
        self.counters[leaf, x.coeff_modulus_size() - 1] += 1
        result = self._new()
        function(x, *arguments, result)
        return result

    def finish(self, x: Any, value: int) -> Any:
        # SEAL recomputes scales in floating point; the plan's are the ones that count (equal to 2^-40).
        x.scale = self.plan.values[value].scale
        return x

    def add(self, x: Any, y: Any) -> Any:
        return self._call("add", self._seal.add, x, y)

    def sub(self, x: Any, y: Any) -> Any:
        return self._call("sub", self._seal.sub, x, y)

    def negate(self, x: Any) -> Any:
        return self._call("negate", self._seal.negate, x)

    def reread(self, x: Any, scale: float) -> Any:
        copy = self._new()
        self._seal.mod_switch_to(x, x.parms_id(), copy)  # to where it is: SEAL's bindings have no other copy
        copy.scale = scale
        return copy

    def add_plain(self, x: Any, plaintext: int) -> Any:
        return self._call("add_plain", self._seal.add_plain, x, self._backend.plaintext(plaintext))

    def mul_plain(self, x: Any, plaintext: int) -> Any:
        return self._call("mul_plain", self._seal.multiply_plain, x, self._backend.plaintext(plaintext))

    def mul(self, x: Any, y: Any) -> Any:
        return self._call("mul", self._seal.multiply, x, y)

    def square(self, x: Any) -> Any:
        return self._call("square", self._seal.square, x)

    def relinearize(self, x: Any) -> Any:
        if self._keys.relin is None:
            raise KeyMismatch(
                "cannot relinearize: got no relinearization key; try uploading the key set of the client spec"
            )
        return self._call("relinearize", self._seal.relinearize, x, self._keys.relin)

    def rescale(self, x: Any) -> Any:
        return self._call("rescale", self._seal.rescale_to_next, x)

    def mod_switch(self, x: Any) -> Any:
        return self._call("mod_switch", self._seal.mod_switch_to_next, x)

    def rotate(self, x: Any, step: int) -> Any:
        element = self.plan.params.galois_element(step)
        return self._call("rotate", self._seal.apply_galois, x, element, self._keys.galois)

    def conjugate(self, x: Any) -> Any:
        return self._call("conjugate", self._seal.complex_conjugate, x, self._keys.galois)
