"""Released decryptions: Li and Micciancio's key recovery works on raw ones and fails on released ones; the budget holds."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from client import Client, KeyStore, PrecisionImpossible, ReleaseBudgetSpent, ReleaseRefused
from client.exchange import encrypt
from client.keystore import KeyEntry, ServerIdentity
from client.prepare import Prepared
from client.release import RELEASES, STATISTICAL_BITS, _published, decrypt_for_release, flooding
from client.release_ledger import charge, open_ledger
from client.wide_noise import discrete_gaussian
from he_runtime import Executor, compile
from he_runtime.backends.hybrid_keys import secret_residues
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.client_spec import ClientSpec, TensorSpec
from he_runtime.cost import load_default
from he_runtime.encoding import coefficients
from he_runtime.errors import InputError
from he_runtime.params import CkksParams, find_primes
from he_runtime.reference import forward
from he_runtime.ring import CiphertextData, EvaluationKeys, KeySetSpec, SeededPoly
from he_runtime.wire import decode_ciphertexts, expand_seed
from tests.client.conftest import SPEC
from tests.he_runtime.hybrid_reference import evaluate, interpolate
from tests.he_runtime.networks import Builder

SCALE = 2.0**40
Integers = npt.NDArray[np.object_]
Floats = npt.NDArray[np.float64]


@cache
def _params(degree: int) -> CkksParams:
    first, special = find_primes(degree, [50.0, 50.0])
    return CkksParams(degree, (first,), (special,), insecure=degree < 4096)


def _spec(degree: int) -> ClientSpec:
    """A model that hands its input back, one element per slot: all that a decryption could tell is an output."""
    slots = degree // 2
    every = np.arange(slots, dtype=np.int32)[None]
    x, y = (TensorSpec(name, (slots,), every, 0, SCALE) for name in "xy")
    return ClientSpec("identity", "1", "ab" * 32, _params(degree), KeySetSpec(()), x, y, low=-1.0)


@dataclass(frozen=True)
class Owner:
    """A key with its entry, and what everybody may see of it: ciphertexts of random values."""

    ready: Prepared
    rng: np.random.Generator

    def ciphertext(self) -> CiphertextData:
        values = self.rng.uniform(-1, 1, size=(1, *self.ready.spec.input.shape))
        (found,) = decode_ciphertexts(
            encrypt(self.ready.spec, self.ready.secret, values), self.ready.spec.params, max_count=1
        )
        return found

    def raw(self, ciphertext: CiphertextData) -> Floats:
        return self.ready.secret.decrypt(ciphertext)

    def released(self, ciphertext: CiphertextData, releases: int = RELEASES) -> Floats:
        bits = flooding(self.ready.spec, releases).best_bits
        found: Floats = decrypt_for_release(self.ready, [[ciphertext]], 1, bits, releases=releases).values[0]
        return found

    def flooded(self, ciphertext: CiphertextData, releases: int = RELEASES) -> Floats:
        """More than is ever released: the noisy values before they are rounded."""
        noise = flooding(self.ready.spec, releases)
        found: Floats = _published(self.raw(ciphertext)[None], noise, round(-math.log2(noise.grid)))[0]
        return found


def _owner(home: Path, degree: int = 1024, number: int = 0) -> Owner:
    spec = _spec(degree)
    entry = KeyStore(home).entry(ServerIdentity(f"127.0.0.1:{number + 1}"), spec.params)
    with entry.lock():
        secret = entry.secret()
    return Owner(Prepared(spec, "", entry, secret, "", 0, 0), np.random.default_rng(number))


def _recovered(params: CkksParams, seen: list[tuple[CiphertextData, Floats]]) -> Integers | None:
    """The secret's coefficients from two ciphertexts and what was published of them, or None where that is no secret.

    Encoding the published values again gives m + conj(m) for m = c0 + c1 s: the real part of every slot. At a root z that
    is c1(z) s(z) + c1(1/z) s(1/z) = known, so two ciphertexts give two linear equations in s(z) and s(1/z).
    """
    q = params.primes[0]
    rows = []
    for ciphertext, values in seen:
        c0, c1 = (
            (expand_seed(p, params.primes, params.degree) if isinstance(p, SeededPoly) else p)[0].astype(object)
            for p in ciphertext.polys
        )
        doubled = coefficients(values[None], 2 * ciphertext.scale)[0]
        plain = evaluate(np.array([int(c) for c in doubled], dtype=object), q)
        rows.append((c1, c1[::-1], (plain - c0 - c0[::-1]) % q))  # 1/z stands where z does from the end
    (a, a2, known), (b, b2, other) = rows
    determinant = (a * b2 - a2 * b) % q
    if not determinant.all():
        return None
    inverse = np.array([pow(int(d), -1, q) for d in determinant], dtype=object)
    found = interpolate((known * b2 - other * a2) * inverse % q, q)
    centred = np.where(found > q // 2, found - q, found)
    return centred if set(centred.tolist()) <= {-1, 0, 1} else None


def _secret_of(secret: SecretKey) -> Integers:
    q = secret.params.primes[0]
    with secret_residues(secret.params, secret._secret) as residues:
        found = interpolate(residues[0].astype(object), q)
    return np.where(found > q // 2, found - q, found)


@pytest.mark.parametrize("degree", [1024, 4096])
def test_the_key_is_recovered_from_raw_decryptions(degree: int, tmp_path: Path) -> None:
    """The attack works, also at parameters of 128-bit security: otherwise its failures below would show nothing."""
    owner = _owner(tmp_path, degree)
    seen = [(c, owner.raw(c)) for c in (owner.ciphertext(), owner.ciphertext())]
    found = _recovered(owner.ready.spec.params, seen)
    assert found is not None and (found == _secret_of(owner.ready.secret)).all()


def test_it_fails_on_released_ones_a_hundred_times(tmp_path: Path) -> None:
    """Ten keys, ten attacks on each; and one on the noisy values before they are rounded, which say more."""
    failed = 0
    for number in range(10):
        owner = _owner(tmp_path, number=number)
        params = owner.ready.spec.params
        pair = [owner.ciphertext(), owner.ciphertext()]
        assert _recovered(params, [(c, owner.raw(c)) for c in pair]) is not None
        assert _recovered(params, [(c, owner.flooded(c, 20)) for c in pair]) is None
        for _ in range(10):
            pair = [owner.ciphertext(), owner.ciphertext()]
            failed += _recovered(params, [(c, owner.released(c, 20)) for c in pair]) is None
        assert open_ledger(owner.ready.entry.path).left == 0
    assert failed == 100


def test_averaging_the_whole_budget_does_not_help(tmp_path: Path) -> None:
    owner = _owner(tmp_path)
    pair = [owner.ciphertext(), owner.ciphertext()]
    half = RELEASES // 2
    released = [np.mean([owner.released(c) for _ in range(half)], axis=0) for c in pair]
    assert _recovered(owner.ready.spec.params, list(zip(pair, released, strict=True))) is None
    # Nor does it without the rounding, with the whole budget spent on each of the two.
    flooded = [np.mean([owner.flooded(c) for _ in range(RELEASES)], axis=0) for c in pair]
    assert _recovered(owner.ready.spec.params, list(zip(pair, flooded, strict=True))) is None
    left = np.std(np.concatenate(flooded) - np.concatenate([owner.raw(c) for c in pair]))
    noise = flooding(owner.ready.spec)
    assert left >= 0.9 * noise.sigma / math.sqrt(RELEASES) > 2**15 * noise.error_bound


def test_averaging_defeats_a_noise_as_narrow_as_the_error(tmp_path: Path) -> None:
    """The attack above is a real one: noise of one unit per coefficient stops it once, but not a hundred averaged times."""
    owner, rng = _owner(tmp_path), np.random.default_rng(0)
    params = owner.ready.spec.params
    unit = math.sqrt(params.degree) / (2 * SCALE)  # in slots, of coefficients of m + conj(m)
    pair = [owner.ciphertext(), owner.ciphertext()]
    noisy = [owner.raw(c) + rng.normal(size=(100, params.slots)) * unit for c in pair]
    assert _recovered(params, [(c, n[0]) for c, n in zip(pair, noisy, strict=True)]) is None
    found = _recovered(params, [(c, n.mean(axis=0)) for c, n in zip(pair, noisy, strict=True)])
    assert found is not None and (found == _secret_of(owner.ready.secret)).all()


def test_the_noise_is_as_wide_as_the_formula_says(tmp_path: Path) -> None:
    """Its standard deviation, its tails, and what it follows from: the error bound, the releases, the bits, the values."""
    owner = _owner(tmp_path)
    noise = flooding(owner.ready.spec)
    wanted = 8 * math.sqrt(RELEASES) * 2 ** (STATISTICAL_BITS / 2) * math.sqrt(512) * noise.error_bound
    assert wanted < noise.sigma < 1.03 * wanted
    assert 0.9 < noise.divergence * 2 ** (STATISTICAL_BITS + 7) <= 1.0
    c = owner.ciphertext()
    drawn = np.concatenate([owner.flooded(c) - owner.raw(c) for _ in range(32)]) / noise.sigma
    count = len(drawn)
    assert abs(drawn.mean()) < 5 / math.sqrt(count)
    assert abs(drawn.std() - 1) < 5 / math.sqrt(2 * count)
    assert abs((drawn**4).mean() - 3) < 5 * math.sqrt(96 / count)
    spec = owner.ready.spec
    louder = replace(spec, error_bound=4 * noise.error_bound)
    assert flooding(louder).sigma == pytest.approx(4 * noise.sigma)
    assert flooding(spec, 4 * RELEASES).sigma == pytest.approx(2 * noise.sigma, rel=1e-6)
    assert flooding(spec, RELEASES, STATISTICAL_BITS + 2).sigma == pytest.approx(2 * noise.sigma, rel=1e-6)


def test_a_server_cannot_state_less_error_than_encryption_has() -> None:
    spec = _spec(1024)
    assert flooding(replace(spec, error_bound=1e-30)) == flooding(spec)
    assert flooding(spec).error_bound * SCALE > 6 * 3.2 * math.sqrt(1024 / 2)


@pytest.mark.parametrize("sigma", [1, 3])
def test_the_sampler_has_the_discrete_gaussian_s_probabilities(sigma: int) -> None:
    count = 20_000
    drawn = np.array([discrete_gaussian(sigma) for _ in range(count)])
    support = np.arange(-40, 41)
    expected = np.exp(-(support**2) / (2 * sigma**2))
    expected *= count / expected.sum()
    kept = expected > 10
    observed = np.array([(drawn == k).sum() for k in support[kept]])
    chi_square = ((observed - expected[kept]) ** 2 / expected[kept]).sum()
    freedom = kept.sum()
    assert chi_square < freedom + 6 * math.sqrt(2 * freedom)


def test_the_noise_comes_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> bytes:
        raise OSError("no randomness")

    monkeypatch.setattr("random._urandom", refused)  # what `secrets` reads
    with pytest.raises(OSError, match="no randomness"):
        discrete_gaussian(1 << 20)


def test_released_values_are_rounded_and_near(tmp_path: Path) -> None:
    owner = _owner(tmp_path)
    c = owner.ciphertext()
    bits = flooding(owner.ready.spec).best_bits
    assert bits >= 1  # worth something, at these parameters
    release = decrypt_for_release(owner.ready, [[c]], 1, bits)
    assert (release.values * 2.0**bits % 1 == 0).all()
    assert np.abs(release.values[0] - owner.raw(c)).max() <= 2.0**-bits
    assert (release.bits, release.releases_left) == (bits, RELEASES - 1)
    with pytest.raises(PrecisionImpossible, match=f"bits={bits}") as refused:
        decrypt_for_release(owner.ready, [[c]], 1, bits + 1)
    assert refused.value.best_bits == bits
    assert open_ledger(owner.ready.entry.path).used == 1  # what was refused cost nothing


def _again(entry: KeyEntry) -> KeyEntry:
    """The same entry as another process finds it."""
    return KeyEntry(entry.path, entry.params)


def test_the_budget_is_kept_on_disk_and_holds(tmp_path: Path) -> None:
    entry = _owner(tmp_path).ready.entry
    assert charge(entry.path, 3, 4, 30).left == 1
    with pytest.raises(ReleaseRefused, match="4 at 30 bits"):
        charge(_again(entry).path, 1, 400, 30)
    with pytest.raises(ReleaseBudgetSpent, match="make new keys"):
        charge(_again(entry).path, 2, 4, 30)
    assert charge(_again(entry).path, 1, 4, 30).left == 0
    with pytest.raises(ReleaseBudgetSpent, match="4 of 4"):
        charge(_again(entry).path, 1, 4, 30)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda ledger: ledger.unlink(),
        lambda ledger: ledger.write_bytes(b"{}"),
        lambda ledger: ledger.write_bytes(ledger.read_bytes()[:20]),
        lambda ledger: ledger.write_text(json.dumps({**json.loads(ledger.read_text()), "used": -1})),
        lambda ledger: ledger.write_text(json.dumps({**json.loads(ledger.read_text()), "key": "00" * 32})),
    ],
)
def test_deleting_or_bending_the_record_gives_no_release(tmp_path: Path, spoil: Any) -> None:
    owner = _owner(tmp_path)
    spoil(owner.ready.entry.path / "releases.json")
    with pytest.raises(ReleaseBudgetSpent, match="make new keys"):
        owner.released(owner.ciphertext())
    with owner.ready.entry.lock():
        owner.ready.entry.secret()  # the key is still there, and still without releases
    with pytest.raises(ReleaseBudgetSpent):
        open_ledger(owner.ready.entry.path)


def test_a_new_key_begins_a_new_budget(tmp_path: Path) -> None:
    first = _owner(tmp_path)
    charge(first.ready.entry.path, 2, 2, 30)
    store = KeyStore(tmp_path)
    store.delete(store.entries()[0])
    assert charge(_owner(tmp_path).ready.entry.path, 1, 2, 30).left == 1


def test_no_release_where_the_count_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = _owner(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("client._files._replace_file", full)
    monkeypatch.setattr("client.release._published", lambda *_: pytest.fail("released without counting"))
    with pytest.raises(Exception, match="No space left"):
        owner.released(owner.ciphertext())


def test_a_client_releases_predictions(server: Any, tmp_path: Path, sample: np.ndarray) -> None:
    """Over the wire: within the range only, counted per sample, kept across clients."""
    server.specs["echo"] = replace(SPEC, error_bound=1e-6)
    with Client.connect(server.address, home=tmp_path / "home") as client:
        bits = flooding(client.spec("echo")).best_bits
        calls = len(server.requests)
        with pytest.raises(PrecisionImpossible):
            client.predict_for_release("echo", sample, bits + 1)
        with pytest.raises(InputError):
            client.predict_for_release("echo", sample + 100.0, bits)
        assert len(server.requests) == calls  # nothing was sent
        release = client.predict_for_release("echo", np.stack([sample, sample]), bits)
        assert release.values.shape == (2, 8) and release.releases_left == RELEASES - 2
        raw = client.predict("echo", sample).logits
        assert np.abs(release.values - raw).max() <= 2.0**-bits
    with Client.connect(server.address, home=tmp_path / "home") as client:
        client.predict_for_release("echo", np.stack([sample] * (RELEASES - 2)), bits)
        with pytest.raises(ReleaseBudgetSpent, match="make new keys"):
            client.predict_for_release("echo", sample, bits)


def test_a_planned_network_s_answers_are_released(tmp_path: Path) -> None:
    """A plan of three primes per level: encrypted, evaluated, released, and the values are what the network gives."""
    builder = Builder((32,))
    builder.dense(32, 4)
    model = builder.calibrated("net")
    plan = compile(model, degrees=(8192,), max_error=1e-8, primes_per_level=3, table=load_default("tenseal"))
    spec = plan.client_spec()
    entry = KeyStore(tmp_path).entry(ServerIdentity("127.0.0.1:1"), spec.params)
    with entry.lock():
        secret = entry.secret()
    executor = Executor(plan, "tenseal")
    keys = EvaluationKeys(spec.params.digest, {r.element: r for r in secret.make_keys(spec.keys)})
    x = builder.inputs(1)
    sent = decode_ciphertexts(encrypt(spec, secret, x), spec.params, max_count=64)
    reply = executor.run(sent, executor.load_keys(keys))
    bits = flooding(spec).best_bits
    assert bits >= 8
    released = decrypt_for_release(Prepared(spec, "", entry, secret, "", 0, 0), [reply], 1, bits)
    assert np.abs(released.values - forward(model, x)).max() <= 2.0**-bits
