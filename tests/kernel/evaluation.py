"""Rings, keys and operands for the evaluator's tests, and SEAL as the judge of its bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from he_runtime.backends import seal_bridge, seal_format
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.gadget import SEAL, Gadget
from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import CiphertextData, KeyRecord, KeyRequest, KeySetSpec, SeededPoly
from he_runtime.wire import expand_seed

U64 = npt.NDArray[np.uint64]  # (polynomials, rows, n) residues


def chain(degree: int, live: Sequence[float], special: Sequence[float]) -> CkksParams:
    """Parameters with primes of these bits."""
    primes = find_primes(degree, [*special, *live])
    return CkksParams(degree, tuple(primes[len(special) :]), tuple(primes[: len(special)]), insecure=True)


@cache
def secret(params: CkksParams) -> SecretKey:
    return SecretKey.generate(params)


@cache
def record(params: CkksParams, element: int, level: int, gadget: str) -> KeyRecord:
    """A client's key."""
    (made,) = secret(params).make_keys(KeySetSpec((KeyRequest(element, level),), gadget))
    return made


def full(params: CkksParams, ct: CiphertextData) -> U64:
    """The residues of a ciphertext, its seed expanded."""
    primes = params.primes[: ct.level + 1]
    return np.stack([expand_seed(p, primes, params.degree) if isinstance(p, SeededPoly) else p for p in ct.polys])


def residues(rng: np.random.Generator, params: CkksParams, level: int, polys: int, extreme: float = 0.1) -> U64:
    """Uniform residues, a share of them 0, 1 or q - 1."""
    out = np.empty((polys, level + 1, params.degree), dtype=np.uint64)
    for j, q in enumerate(params.primes[: level + 1]):
        shape = polys, params.degree
        ends = rng.choice(np.array([0, 1, q - 1], dtype=np.uint64), shape)
        out[:, j] = np.where(rng.random(shape) < extreme, ends, rng.integers(0, q, shape, dtype=np.uint64))
    return out


@dataclass(frozen=True)
class Machine:
    """The kernel's ring for one parameter set on one path."""

    kernel: Any
    params: CkksParams
    gadget: str
    ring: Any

    @classmethod
    def make(cls, kernel: Any, params: CkksParams, path: str, gadget: str = SEAL) -> Machine:
        alpha = Gadget.parse(gadget).alpha
        ring = kernel.Ring(params.degree, list(params.primes), list(params.special), alpha, path)
        return cls(kernel, params, gadget, ring)

    def key(self, element: int, level: int) -> Any:
        params, made = self.params, record(self.params, element, level, self.gadget)
        primes = (*params.primes, *params.special)
        rows = [*range(level + 1), *range(len(params.primes), len(primes))]
        digits = [
            (b, expand_seed(a, primes, params.degree)[rows] if isinstance(a, SeededPoly) else a) for b, a in made.digits
        ]
        return self.kernel.make_key(self.ring, level, max(element, 1), digits)

    def keys(self, elements: Iterable[int], level: int) -> dict[int, Any]:
        return {element: self.key(element, level) for element in elements}

    def upload(self, polys: U64) -> Any:
        return self.kernel.upload(self.ring, polys.shape[1] - 1, list(polys))

    def download(self, x: Any) -> U64:
        out = np.empty((x.size, x.level + 1, self.params.degree), dtype=np.uint64)
        self.kernel.download(x, out)
        return out

    def plain(
        self, level: int, coefficients: npt.NDArray[np.float64], extended: bool = False, compact: bool = False
    ) -> Any:
        return self.kernel.encode(self.ring, level, extended, np.ascontiguousarray(coefficients), compact)

    def constant(self, level: int, integer: int, extended: bool = False) -> Any:
        primes = (*self.params.primes[: level + 1], *(self.params.special if extended else ()))
        return self.kernel.constant(self.ring, level, extended, [integer % q for q in primes])

    def call(self, name: str, *operands: Any) -> U64:
        """The residues that a leaf leaves; arrays are uploaded."""
        handles = [self.upload(x) if isinstance(x, np.ndarray) else x for x in operands]
        return self.download(getattr(self.kernel, name)(self.ring, *handles, self.kernel.Task()))


class Judge:
    """SEAL's evaluator on residues. Scales are of no interest: small enough that SEAL takes them at any level."""

    SCALE = 2.0**8

    def __init__(self, params: CkksParams, records: Sequence[KeyRecord] = ()) -> None:
        self.params = params
        self._seal = seal_bridge.sealapi()
        self.context = seal_bridge.make_context(params)
        self._evaluator = self._seal.Evaluator(self.context)
        self._galois, self._relin = seal_bridge.upload_keys(self.context, params, {r.element: r for r in records})

    def upload(self, polys: U64) -> Any:
        data = CiphertextData(polys.shape[1] - 1, self.SCALE, tuple(polys))
        return seal_bridge.upload_ciphertext(self.context, self.params, data)

    def plain(self, rows: U64) -> Any:
        """An encoded operand of these residues (level + 1, n)."""
        parms_id, minor = seal_bridge.parms_id(self.context, len(rows) - 1), seal_bridge.seal_minor()
        words = seal_format._object([seal_format._COUNT.pack(rows.size), rows.tobytes()], minor)
        parts = seal_format.object_file([seal_format._PLAINTEXT.pack(*parms_id, rows.size, self.SCALE), *words], minor)
        return seal_bridge.load_object(self._seal.Plaintext(), self.context, parts)

    def call(self, name: str, *operands: Any) -> U64:
        handles = [self.upload(x) if isinstance(x, np.ndarray) else x for x in operands]
        if name == "apply_galois":
            handles.append(self._galois)
        elif name == "relinearize":
            handles.append(self._relin)
        out = self._seal.Ciphertext()
        getattr(self._evaluator, name)(*handles, out)
        found = seal_bridge.download_ciphertext(self.context, self.params, out)
        return np.stack([np.asarray(p) for p in found.polys])
