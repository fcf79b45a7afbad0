"""Hoisted rotations against single ones: the same slots within the noise, on every path and for hybrid digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import CiphertextData, KeyRequest, KeySetSpec, SeededPoly
from he_runtime.wire.expansion import expand_seed

DEGREE, LIMBS = 2048, 4
SCALE = 2.0**35
STEPS = (1, 5, 1000)


class Client:
    """A secret key, a ciphertext and rotation keys, in the kernel's form for any path."""

    def __init__(self, gadget: str, special: int, alpha: int) -> None:
        primes = find_primes(DEGREE, [45.0] * LIMBS + [48.0] * special)
        self.params = CkksParams(DEGREE, tuple(primes[:LIMBS]), tuple(primes[LIMBS:]), insecure=True)
        self.alpha = alpha
        self.elements = [self.params.galois_element(step) for step in STEPS]
        self.secret = SecretKey.generate(self.params)
        spec = KeySetSpec(tuple(KeyRequest(e, LIMBS - 1) for e in self.elements), gadget)
        self.records = list(self.secret.make_keys(spec))
        self.slots = np.random.default_rng(5).normal(size=self.params.slots)

    def ring(self, kernel: Any, path: str) -> Any:
        return kernel.Ring(DEGREE, list(self.params.primes), list(self.params.special), self.alpha, path)

    def upload(self, kernel: Any, ring: Any, level: int) -> Any:
        data = self.secret.encrypt(self.slots, level, SCALE)
        primes = self.params.primes[: level + 1]
        return kernel.upload(ring, level, [residues(p, primes) for p in data.polys])

    def keys(self, kernel: Any, ring: Any) -> dict[int, Any]:
        chain = (*self.params.primes, *self.params.special)
        return {
            r.element: kernel.make_key(ring, r.level, r.element, [(b, residues(a, chain)) for b, a in r.digits])
            for r in self.records
        }

    def decrypt(self, kernel: Any, x: Any) -> Any:
        found = download(kernel, x)
        return self.secret.decrypt(CiphertextData(x.level, SCALE, tuple(found)))


def residues(poly: Any, primes: tuple[int, ...]) -> Any:
    return expand_seed(poly, primes, DEGREE) if isinstance(poly, SeededPoly) else poly


def download(kernel: Any, x: Any) -> Any:
    found = np.empty((x.size, x.level + 1, DEGREE), dtype=np.uint64)
    kernel.download(x, found)
    return found


@pytest.fixture(scope="module", params=[("seal", 1, 1), ("hybrid-2", 2, 2)], ids=["seal", "hybrid"])
def client(request: pytest.FixtureRequest) -> Client:
    return Client(*request.param)


@pytest.mark.parametrize("level", [LIMBS - 1, 1, 0])
def test_hoisted_is_rotated(kernel: Any, paths: list[str], client: Client, level: int) -> None:
    bits: list[Any] = []
    operand: Any = None
    for path in paths:
        ring = client.ring(kernel, path)
        keys, task = client.keys(kernel, ring), kernel.Task()
        x = client.upload(kernel, ring, level) if operand is None else kernel.upload(ring, level, list(operand))
        operand = download(kernel, x)
        found = kernel.rotate_hoisted(ring, x, client.elements, keys, task)
        assert len(found) == len(STEPS)
        for step, element, ours in zip(STEPS, client.elements, found, strict=True):
            assert (ours.level, ours.size) == (level, 2)
            single = kernel.apply_galois(ring, x, element, keys[element], task)
            slots = client.decrypt(kernel, ours)
            # Key switching adds noise of a few hundred in each coefficient, whatever its digits; the scale is 2^35.
            assert np.abs(slots - client.decrypt(kernel, single)).max() < 1e-5
            assert np.abs(slots - np.roll(client.slots, -step)).max() < 1e-5
        bits.append(np.stack([download(kernel, ours) for ours in found]))
    assert all((other == bits[0]).all() for other in bits), "every path gives the same bits"


def test_any_number_of_threads_gives_the_same_bits(kernel: Any, client: Client) -> None:
    ring = client.ring(kernel, kernel.default_path())
    keys, x, before = client.keys(kernel, ring), client.upload(kernel, ring, LIMBS - 1), kernel.threads()
    found = []
    try:
        for count in (1, 2, 3):
            kernel.set_threads(count)
            outputs = kernel.rotate_hoisted(ring, x, client.elements, keys, kernel.Task())
            found.append(np.stack([download(kernel, y) for y in outputs]))
    finally:
        kernel.set_threads(before)
    assert all((other == found[0]).all() for other in found)


def test_what_does_not_fit_is_refused(kernel: Any, client: Client) -> None:
    ring = client.ring(kernel, kernel.default_path())
    keys, x, task = client.keys(kernel, ring), client.upload(kernel, ring, LIMBS - 1), kernel.Task()
    assert kernel.rotate_hoisted(ring, x, [], keys, task) == []
    with pytest.raises(IndexError, match="need a key for Galois element"):
        kernel.rotate_hoisted(ring, x, [client.params.galois_element(7)], keys, task)
    other = kernel.Ring(DEGREE, list(client.params.primes[:2]), list(client.params.special), client.alpha, ring.path)
    with pytest.raises(ValueError, match="of this ring"):
        kernel.rotate_hoisted(other, x, client.elements, keys, task)
    task.cancel()
    with pytest.raises(RuntimeError, match="cancelled"):
        kernel.rotate_hoisted(ring, x, client.elements, keys, task)


def test_reading_keys_sums_their_words(kernel: Any, paths: list[str], client: Client) -> None:
    totals = set()
    for path in paths:
        ring = client.ring(kernel, path)
        totals.add(kernel.read_bandwidth(ring, list(client.keys(kernel, ring).values())))
    chain = (*client.params.primes, *client.params.special)
    words = (
        int(poly.astype(object).sum()) for r in client.records for b, a in r.digits for poly in (b, residues(a, chain))
    )
    assert totals == {sum(words) % (1 << 64)}
