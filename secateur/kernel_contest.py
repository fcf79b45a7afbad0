"""One parameter set on which the native kernel and SEAL rotate the same ciphertext with the same keys."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import KeyRequest, KeySetSpec, SeededPoly
from he_runtime.wire.expansion import expand_seed, expanded

from .kernel_threads import kernel_module

if TYPE_CHECKING:
    from he_runtime.ring import KeyRecord

__all__ = ["ROTATIONS", "KernelContest", "Point", "seconds"]

ROTATIONS = 16
_SCALE = 2.0**40
_SINGLE = 5  # calls in a round of what is measured one by one


@dataclass(frozen=True)
class Point:
    """A ring degree, live primes, and the bits of each of them and of the one special prime."""

    degree: int
    limbs: int
    bits: int

    def params(self) -> CkksParams:
        primes = find_primes(self.degree, [float(self.bits)] * (self.limbs + 1))
        return CkksParams(self.degree, tuple(primes[:-1]), (primes[-1],))


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class KernelContest:
    """Sixteen keys at the highest level, in SEAL's objects and in the kernel's."""

    def __init__(self, point: Point, path: str) -> None:
        from he_runtime.backends.seal_bridge import make_context, sealapi, upload_keys
        from he_runtime.backends.tenseal_secret import SecretKey

        self.point, self._params, self._kernel = point, point.params(), kernel_module()
        params, level = self._params, point.limbs - 1
        self.elements = [params.galois_element(step) for step in range(1, ROTATIONS + 1)]
        secret = SecretKey.generate(params)
        data = secret.encrypt(np.linspace(-1.0, 1.0, params.slots), level, _SCALE)
        self._data, self._context = data, make_context(params)
        self._seal = sealapi()
        self._evaluator = self._seal.Evaluator(self._context)
        self.ring = self._kernel.Ring(params.degree, list(params.primes), list(params.special), 1, path)
        self._task = self._kernel.Task()
        records: dict[int, KeyRecord] = {}
        self.keys: dict[int, Any] = {}
        for record in secret.make_keys(KeySetSpec(tuple(KeyRequest(e, level) for e in self.elements))):
            records[record.element] = record
            self.keys[record.element] = self._load(record)
        self._seal_keys, _ = upload_keys(self._context, params, records)
        self._seal_x, self._x = self.seal_upload(), self.native_upload()
        self._transform = self._sum_of_all()

    def _load(self, record: KeyRecord) -> Any:
        chain = (*self._params.primes, *self._params.special)
        digits = [(b, _residues(a, chain, self._params.degree)) for b, a in record.digits]
        return self._kernel.make_key(self.ring, record.level, record.element, digits)

    def identical(self) -> bool:
        """Whether one rotation has the same bits in both."""
        from he_runtime.backends.seal_bridge import download_ciphertext

        element = self.elements[-1]
        rotated = self._seal.Ciphertext()
        self._evaluator.apply_galois(self._seal_x, element, self._seal_keys, rotated)
        theirs = download_ciphertext(self._context, self._params, rotated).polys
        native = self._kernel.apply_galois(self.ring, self._x, element, self.keys[element], self._task)
        ours = np.empty((2, self.point.limbs, self.point.degree), dtype=np.uint64)
        self._kernel.download(native, ours)
        return np.array_equal(ours, np.stack([_residues(p, self._params.primes, self.point.degree) for p in theirs]))

    def seal_upload(self) -> Any:
        """A client's ciphertext as SEAL's object; SEAL expands the seed of its second polynomial."""
        from he_runtime.backends.seal_bridge import upload_ciphertext

        return upload_ciphertext(self._context, self._params, self._data)

    def native_upload(self) -> Any:
        """The same as the kernel's object."""
        full = expanded(self._data, self._params)
        return self._kernel.upload(self.ring, full.level, full.polys)

    def seal_once(self) -> None:
        """One rotation by SEAL."""
        self._evaluator.apply_galois(self._seal_x, self.elements[0], self._seal_keys, self._seal.Ciphertext())

    def native_once(self) -> None:
        """The same one by the kernel, bit for bit."""
        element = self.elements[0]
        self._kernel.apply_galois(self.ring, self._x, element, self.keys[element], self._task)

    def read_once(self) -> None:
        """All words of its key, read once."""
        self._kernel.read_bandwidth(self.ring, [self.keys[self.elements[0]]])

    def seal(self) -> None:
        """Sixteen rotations by SEAL, with a key each."""
        for element in self.elements:
            self._evaluator.apply_galois(self._seal_x, element, self._seal_keys, self._seal.Ciphertext())

    def hoisted(self) -> None:
        """The same sixteen by the kernel, with one decomposition, each a ciphertext of its own."""
        self._kernel.rotate_hoisted(self.ring, self._x, self.elements, self.keys, self._task)

    def fused(self) -> None:
        """The same sixteen as a linear transform makes them: summed before the one division by the special prime."""
        self._transform.run([self._x], self.keys, self._task)

    def _sum_of_all(self) -> Any:
        level, rows = self.point.limbs - 1, self.point.limbs + 1
        one = self._kernel.constant(self.ring, level, True, [1] * rows)
        babies, cells = [(0, e) for e in self.elements], [(0, k, 0) for k in range(ROTATIONS)]
        return self._kernel.Transform.make(
            self.ring, level, 1, 1, babies, [(0, 1)], np.array(cells, dtype=np.int64), [one]
        )

    def read(self) -> None:
        """All words of the sixteen keys, read once."""
        self._kernel.read_bandwidth(self.ring, list(self.keys.values()))

    def medians(self, rounds: int) -> dict[str, float]:
        """Milliseconds of each, interleaved round by round after a round that does not count."""
        calls = {
            "seal_upload": self.seal_upload,
            "native_upload": self.native_upload,
            "seal_once": self.seal_once,
            "native_once": self.native_once,
            "read_once": self.read_once,
            "seal": self.seal,
            "hoisted": self.hoisted,
            "fused": self.fused,
            "read": self.read,
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for k in range(rounds + 1):
            for name, call in calls.items():
                for _ in range(_SINGLE if name.endswith(("once", "upload")) else 1):
                    taken = seconds(call)
                    if k:
                        times[name].append(taken * 1e3)
        return {name: statistics.median(taken) for name, taken in times.items()}


def _residues(poly: Any, primes: tuple[int, ...], degree: int) -> Any:
    return expand_seed(poly, primes, degree) if isinstance(poly, SeededPoly) else poly
