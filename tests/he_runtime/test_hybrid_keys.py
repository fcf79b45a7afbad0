"""Keys on hybrid gadgets: they switch, their noise is SEAL's, and so is every random bit in them."""

from __future__ import annotations

import math
import os
import random
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tenseal")

from he_runtime import wire
from he_runtime.backends import seal_bridge
from he_runtime.backends.hybrid_keys import make_key, secret_residues
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.backends.zeros import PublicKeyZeros, SymmetricZeros, ZeroSource
from he_runtime.errors import KeyMismatch, ParameterError, Reason
from he_runtime.gadget import Gadget
from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import CiphertextData, EvaluationKeys, KeyRecord, KeyRequest, KeySetSpec, SeededPoly
from tests.he_runtime import hybrid_reference as reference

N = 1024
SCALE = 2.0**38
SEAL_VARIANCE = 10.5  # 21 minus 21 coins, which SEAL draws for a Gaussian of sigma 3.2 (10.24)
SOURCES: dict[str, Callable[..., ZeroSource]] = {"symmetric": SymmetricZeros, "public key": PublicKeyZeros}
every_source = pytest.mark.parametrize("source", SOURCES)


def chain(live: list[float], special: list[float]) -> CkksParams:
    primes = find_primes(N, [*special, *live])
    return CkksParams(N, tuple(primes[len(special) :]), tuple(primes[: len(special)]), insecure=True)


ONE = chain([45, 38, 38, 38], [46])
TWO = chain([45, 38, 38, 38], [46, 46])
WIDE = chain([60, 59, 58, 57, 56], [60, 60, 60])
SECRETS: dict[str, SecretKey] = {}


def secret_for(params: CkksParams) -> SecretKey:
    if params.digest not in SECRETS:
        SECRETS[params.digest] = SecretKey.generate(params)
    return SECRETS[params.digest]


def residues(params: CkksParams) -> reference.Integers:
    with secret_residues(params, secret_for(params)._secret) as rows:
        return rows.astype(object)


def build(params: CkksParams, gadget: str, request: KeyRequest, source: str = "symmetric") -> KeyRecord:
    key = secret_for(params)
    zeros = SOURCES[source](params, key._context, key._secret)
    with secret_residues(params, key._secret) as rows:
        return make_key(params, Gadget.parse(gadget), request, rows, zeros)


def full(params: CkksParams, ct: CiphertextData) -> CiphertextData:
    """The ciphertext with its seed expanded."""
    c0, c1 = ct.polys
    assert isinstance(c1, SeededPoly)
    live = params.primes[: ct.level + 1]
    return CiphertextData(ct.level, ct.scale, (c0, wire.expand_seed(c1, live, params.degree)))


def test_the_residues_of_the_secret_are_ternary_and_gone_afterwards() -> None:
    key = secret_for(TWO)
    with secret_residues(TWO, key._secret) as rows:
        for row, q in zip(rows.astype(object), (*TWO.primes, *TWO.special), strict=True):
            coefficients = reference.interpolate(row, q)
            assert set(coefficients.tolist()) == {0, 1, q - 1}
            assert np.array_equal(reference.evaluate(coefficients, q), row), "the reference inverts itself"
    assert not rows.any()


CASES = [
    # parameters, gadget, level of the key, level of the ciphertext
    *((ONE, "hybrid-1", 3, level) for level in (3, 1, 0)),
    *((TWO, "hybrid-1", 3, 3), (TWO, "hybrid-2", 3, 3), (TWO, "hybrid-2", 3, 2), (TWO, "hybrid-2", 3, 0)),
    *((TWO, "hybrid-2", 2, 2), (TWO, "hybrid-2", 0, 0)),
    *((WIDE, "hybrid-2", 4, 4), (WIDE, "hybrid-3", 4, 4), (WIDE, "hybrid-3", 4, 3), (WIDE, "hybrid-3", 3, 1)),
]
IDS = [f"{p.name}-{g}-key{k}-ct{c}" for p, g, k, c in CASES]


@every_source
@pytest.mark.parametrize("element", [0, 3, 2 * N - 1])
@pytest.mark.parametrize(("params", "gadget", "key_level", "level"), CASES, ids=IDS)
def test_a_switch_adds_the_noise_that_theory_gives(
    params: CkksParams, gadget: str, key_level: int, level: int, element: int, source: str
) -> None:
    """c s' - (c0 + c1 s) for uniform c: digits of variance D^2/12 times key noise over P, and the rounding by P.

    Each of the N coefficients is a sum of thousands of independent terms; 7 sigma bounds all of them.
    """
    record = build(params, gadget, KeyRequest(element, key_level), source)
    live, special = params.primes[: level + 1], math.prod(params.special)
    rng = np.random.default_rng([level, key_level, element])
    c = np.stack([rng.integers(0, q, N).astype(object) for q in live])
    c0, c1 = reference.switch(c, level, record, params)
    s = residues(params)[: level + 1]
    modulus = np.array(live, dtype=object)[:, None]
    moved = reference.source_secret(s, element, live)
    error = reference.centred((c0 + c1 * s - c * moved) % modulus, live).astype(np.float64)
    digits = [math.prod(params.primes[j] for j in digit) for digit in Gadget.parse(gadget).digits(level)]
    weight = np.count_nonzero(reference.interpolate(s[0], live[0]))
    variance = sum((d / special) ** 2 for d in digits) * N * SEAL_VARIANCE / 12 + (1 + weight) / 12
    assert np.abs(error).max() < 7 * math.sqrt(variance)
    assert 0.7 < error.std() / math.sqrt(variance) < 1.3


@pytest.mark.parametrize(("params", "gadget"), [(ONE, "hybrid-1"), (TWO, "hybrid-2"), (TWO, "hybrid-1")])
def test_a_rotated_and_a_squared_ciphertext_decrypt(params: CkksParams, gadget: str) -> None:
    """Through the wire: the keys that a client uploads, at the top level and one below."""
    secret = secret_for(params)
    steps = {params.galois_element(step): step for step in (1, 5)}
    spec = KeySetSpec((KeyRequest(0, 3), *(KeyRequest(e, 3) for e in steps)), gadget)
    records = {r.element: wire.decode_key(wire.encode_key(r, params), params) for r in secret.make_keys(spec)}
    EvaluationKeys(params.digest, records).require(spec, params)
    assert all(r.gadget == gadget and isinstance(a, SeededPoly) for r in records.values() for _, a in r.digits)
    slots = np.random.default_rng(8).normal(size=params.slots)
    for level in (3, 2):
        ct = full(params, secret.encrypt(slots, level, SCALE))
        for element, step in steps.items():
            rotated = secret.decrypt(reference.rotated(ct, records[element], params))
            assert np.abs(rotated - np.roll(slots, -step)).max() < 2.0**-22
        squared = secret.decrypt(reference.squared(ct, records[0], params))
        assert np.abs(squared - slots**2).max() < 2.0**-20


@every_source
def test_with_one_prime_per_digit_and_one_special_it_is_seals_own_key(source: str) -> None:
    """SEAL itself rotates, conjugates and relinearizes with a key of ours."""
    secret = secret_for(ONE)
    context = seal_bridge.make_context(ONE)
    evaluator, seal = seal_bridge.sealapi().Evaluator(context), seal_bridge.sealapi()
    elements = {ONE.galois_element(3): 3, ONE.conjugation_element: 0}
    records = {e: build(ONE, "seal", KeyRequest(e, 2), source) for e in (0, *elements)}
    galois, relin = seal_bridge.upload_keys(context, ONE, records)
    slots = np.random.default_rng(9).normal(size=ONE.slots)
    for level in (2, 1):
        ct = seal_bridge.upload_ciphertext(context, ONE, secret.encrypt(slots, level, SCALE))

        def decrypted(handle: Any) -> np.ndarray:
            return secret.decrypt(seal_bridge.download_ciphertext(context, ONE, handle))

        for element, step in elements.items():
            turned = seal.Ciphertext()
            evaluator.apply_galois(ct, element, galois, turned)
            assert np.abs(decrypted(turned) - np.roll(slots, -step)).max() < 2.0**-22
        square = seal.Ciphertext()
        evaluator.square(ct, square)
        evaluator.relinearize_inplace(square, relin)
        assert np.abs(decrypted(square) - slots**2).max() < 2.0**-20


def noise_of(record: KeyRecord, params: CkksParams) -> np.ndarray:
    return np.concatenate(reference.key_noise(record, params, residues(params))).astype(np.float64)


def distance(left: np.ndarray, right: np.ndarray) -> float:
    """Kolmogorov-Smirnov: the largest distance of the two empirical distributions, in units of its own scale."""
    grid = np.arange(-25, 26) + 0.5
    cumulative = [np.searchsorted(np.sort(x), grid) / len(x) for x in (left, right)]
    return float(np.abs(cumulative[0] - cumulative[1]).max() / math.sqrt(1 / len(left) + 1 / len(right)))


@pytest.fixture(scope="module")
def seal_noise() -> np.ndarray:
    """The noise in keys that SEAL's own key generator made."""
    spec = KeySetSpec(tuple(KeyRequest(e, 3) for e in (0, 3, 5, 2 * N - 1)))
    return np.concatenate([noise_of(r, ONE) for r in secret_for(ONE).make_keys(spec)])


@every_source
@pytest.mark.parametrize(("params", "gadget"), [(ONE, "seal"), (TWO, "hybrid-2"), (WIDE, "hybrid-3")])
def test_the_noise_of_a_key_is_that_of_seals_keys(
    params: CkksParams, gadget: str, source: str, seal_noise: np.ndarray
) -> None:
    """Six standard errors on mean and variance, the support of SEAL's distribution, and its whole shape."""
    requests = [KeyRequest(e, params.max_level) for e in (0, 3, 9, 27, 2 * N - 1)]
    noise = np.concatenate([noise_of(build(params, gadget, r, source), params) for r in requests])
    for sample in (noise, seal_noise):
        count = len(sample)
        assert count >= 10 * N
        assert abs(sample.mean()) < 6 * math.sqrt(SEAL_VARIANCE / count)
        assert abs(sample.var() / SEAL_VARIANCE - 1) < 6 * math.sqrt(2 / count)
        assert np.abs(sample).max() <= 21
    assert distance(noise, seal_noise) < 3


def test_digits_and_keys_share_no_noise_and_no_mask() -> None:
    spec = KeySetSpec((KeyRequest(3, 3), KeyRequest(9, 3)), "hybrid-2")
    records = [r for _ in range(2) for r in secret_for(TWO).make_keys(spec)]
    masks = {a.seed for r in records for _, a in r.digits if isinstance(a, SeededPoly)}
    assert len(masks) == 8
    errors = [e.astype(np.float64) for r in records for e in reference.key_noise(r, TWO, residues(TWO))]
    correlation = np.corrcoef(errors)
    assert np.abs(correlation - np.eye(8)).max() < 6 / math.sqrt(N)


def _forbidden(*_: object, **__: object) -> Any:
    raise AssertionError("randomness was drawn outside SEAL")


@pytest.fixture
def no_randomness(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        for module in (random, secrets, np.random):
            for name, value in list(vars(module).items()):
                if not name.startswith("_") and callable(value) and not isinstance(value, type(os)):
                    patch.setattr(module, name, _forbidden)
        for name in ("urandom", "getrandom"):
            patch.setattr(os, name, _forbidden, raising=False)
        yield


@every_source
def test_no_randomness_is_drawn_outside_seal(source: str, no_randomness: None) -> None:
    for draw in (lambda: os.urandom(1), lambda: np.random.default_rng(), random.random, lambda: secrets.token_bytes(1)):
        with pytest.raises(AssertionError, match="outside SEAL"):
            draw()
    secret = SecretKey.generate(TWO)
    spec = KeySetSpec((KeyRequest(0, 3), KeyRequest(3, 1)), "hybrid-2")
    first, second = (list(secret.make_keys(spec)) for _ in range(2))
    assert not np.array_equal(first[0].digits[0][0], second[0].digits[0][0])
    zeros = SOURCES[source](TWO, secret._context, secret._secret)
    with secret_residues(TWO, secret._secret) as rows:
        make_key(TWO, Gadget.parse("hybrid-2"), KeyRequest(3, 3), rows, zeros)
    secret.public_key()


def test_keys_that_do_not_exist() -> None:
    secret = secret_for(TWO)
    for gadget in ("seal", "hybrid-3", "hybrid-0", "hybrid", ""):
        with pytest.raises(ParameterError):
            list(secret.make_keys(KeySetSpec((KeyRequest(3, 1),), gadget)))
    for request in ((1, 0), (2, 0), (2 * N + 1, 0), (3, 4), (3, -1)):
        with pytest.raises(KeyMismatch) as caught:
            list(secret.make_keys(KeySetSpec((KeyRequest(*request),), "hybrid-2")))
        assert caught.value.reason is Reason.KEY_PARAMETERS_DIFFER


def test_several_special_primes_encrypt_decrypt_and_are_saved(tmp_path: Any) -> None:
    """The secret side has such a context, at every level of the plan and none above; SEAL's evaluators have not."""
    secret = secret_for(WIDE)
    secret.save(tmp_path / "key")
    again = SecretKey.load(tmp_path / "key", WIDE)
    slots = np.random.default_rng(10).normal(size=WIDE.slots)
    ids = [seal_bridge.parms_id(again._context, level) for level in range(5)]
    assert len(set(ids)) == 5
    for level in range(5):
        assert np.abs(again.decrypt(secret.encrypt(slots, level, SCALE)) - slots).max() < 2.0**-20
    with pytest.raises(ParameterError, match="3 special primes"):
        seal_bridge.make_context(WIDE)


def test_a_real_parameter_set() -> None:
    """Inside the security table, special primes included; small noise under every prime tells a right key."""
    primes = find_primes(4096, [26.5, 26, 25.5, 25])
    params = CkksParams(4096, tuple(primes[2:]), tuple(primes[:2]))
    spec = KeySetSpec((KeyRequest(0, 1), KeyRequest(params.galois_element(100), 1)), "hybrid-2")
    for record in secret_for(params).make_keys(spec):
        assert len(record.digits) == 1 and np.abs(noise_of(record, params)).max() <= 21
