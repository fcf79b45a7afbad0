"""The secret side: what it encrypts, what it refuses, and how it keeps its key."""

from __future__ import annotations

import copy
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tenseal")

from he_runtime import wire
from he_runtime.backends import secret_file
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.errors import CiphertextMismatch, InputError, KeyMismatch, Reason, WireError
from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import CiphertextData, EvaluationKeys, KeyRequest, KeySetSpec, SeededPoly

_PRIMES = find_primes(1024, [45, 35, 35, 46])
PARAMS = CkksParams(1024, tuple(_PRIMES[:3]), tuple(_PRIMES[3:]), insecure=True)
OTHER = CkksParams(1024, tuple(_PRIMES[:2]), tuple(_PRIMES[3:]), insecure=True)
SCALE = 2.0**30


@pytest.fixture(scope="module")
def secret() -> SecretKey:
    return SecretKey.generate(PARAMS)


@pytest.fixture(scope="module")
def slots() -> np.ndarray:
    return np.random.default_rng(5).normal(size=PARAMS.slots)


def test_noise_of_a_fresh_ciphertext(secret: SecretKey, slots: np.ndarray) -> None:
    """Error of one slot: sigma 3.2 per coefficient (SEAL) plus rounding, times sqrt(N), over the scale."""
    sigma = math.sqrt((3.2**2 + 1 / 12) * PARAMS.degree) / SCALE
    errors = np.concatenate([secret.decrypt(secret.encrypt(slots, 2, SCALE)) - slots for _ in range(8)])
    # The real part of a slot carries half of the variance.
    assert 0.8 < errors.std() / (sigma / math.sqrt(2)) < 1.2


@pytest.mark.parametrize("scale", [2.0**20, 1234567.875, 2.0**30 / 3])
def test_scale_is_kept_exactly(scale: float, secret: SecretKey, slots: np.ndarray) -> None:
    ct = secret.encrypt(slots, 1, scale)
    assert ct.scale == scale and isinstance(ct.polys[1], SeededPoly) and ct.polys[0].shape == (2, 1024)
    assert np.abs(secret.decrypt(ct) - slots).max() < 2.0**10 / scale


def test_two_encryptions_differ(secret: SecretKey, slots: np.ndarray) -> None:
    first, second = secret.encrypt(slots, 0, SCALE), secret.encrypt(slots, 0, SCALE)
    assert first.polys[1] != second.polys[1] and not np.array_equal(first.polys[0], second.polys[0])


def test_encrypts_up_to_the_modulus_and_no_further(secret: SecretKey) -> None:
    scale = 2.0**40
    fits = np.full(PARAMS.slots, 2.0 ** (PARAMS.log2_q(0) - 2.01) / scale)
    assert np.allclose(secret.decrypt(secret.encrypt(fits, 0, scale)), fits, atol=2.0**-25)
    with pytest.raises(InputError) as caught:
        secret.encrypt(fits * 1.02, 0, scale)
    assert caught.value.reason is Reason.INPUT_OUT_OF_RANGE
    assert str(float(fits[0]))[:6] not in caught.value.message, "a message never holds a plaintext value"


def test_bad_inputs(secret: SecretKey, slots: np.ndarray) -> None:
    for values in (slots[:-1], slots[None], np.float64(1.0)):
        with pytest.raises(InputError) as caught:
            secret.encrypt(np.asarray(values), 0, SCALE)
        assert caught.value.reason is Reason.INPUT_SHAPE
    for bad in (np.nan, np.inf):
        with pytest.raises(InputError) as caught:
            secret.encrypt(np.where(np.arange(PARAMS.slots) == 3, bad, slots), 0, SCALE)
        assert caught.value.reason is Reason.INPUT_NOT_FINITE
    for level, scale in ((-1, SCALE), (3, SCALE), (0, math.nan), (0, 0.0), (0, math.inf), (0, 2.0**45)):
        with pytest.raises(InputError):
            secret.encrypt(slots, level, scale)


def test_decrypt_refuses_before_it_decrypts(secret: SecretKey, slots: np.ndarray) -> None:
    good = secret.encrypt(slots, 1, SCALE)
    c0 = good.polys[0]
    for ct in (
        CiphertextData(1, math.nan, good.polys),
        CiphertextData(1, -1.0, good.polys),
        CiphertextData(1, 2.0**81, good.polys),
        CiphertextData(3, SCALE, good.polys),
        CiphertextData(0, SCALE, good.polys),
        CiphertextData(1, SCALE, good.polys[:1]),
        CiphertextData(1, SCALE, (c0, c0, c0, c0)),
    ):
        with pytest.raises(CiphertextMismatch):
            secret.decrypt(ct)


def test_another_key_does_not_decrypt(secret: SecretKey, slots: np.ndarray) -> None:
    assert np.abs(SecretKey.generate(PARAMS).decrypt(secret.encrypt(slots, 2, SCALE)) - slots).max() > 1


def test_keys_are_seeded_and_cut_to_their_levels(secret: SecretKey) -> None:
    spec = KeySetSpec((KeyRequest(PARAMS.conjugation_element, 0), KeyRequest(0, 2), KeyRequest(9, 1)))
    records = list(secret.make_keys(spec))
    assert [(r.element, r.level) for r in records] == [(r.element, r.level) for r in spec.requests]
    for r in records:
        assert len(r.digits) == r.level + 1
        assert all(b.shape == (r.level + 2, 1024) and isinstance(a, SeededPoly) and a.limbs == 4 for b, a in r.digits)
        assert wire.decode_key(wire.encode_key(r, PARAMS), PARAMS).element == r.element
    EvaluationKeys(PARAMS.digest, {r.element: r for r in records}).require(spec, PARAMS)


def test_keys_come_one_at_a_time(secret: SecretKey) -> None:
    spec = KeySetSpec(tuple(KeyRequest(e, 2) for e in range(3, 2048, 2)))
    assert [next(keys).element for keys in [secret.make_keys(spec)] for _ in range(2)] == [3, 5]


@pytest.mark.parametrize("request_", [(1, 0), (2, 0), (2049, 0), (-3, 0), (3, 3), (3, -1)])
def test_keys_that_do_not_exist(request_: tuple[int, int], secret: SecretKey) -> None:
    with pytest.raises(KeyMismatch):
        list(secret.make_keys(KeySetSpec((KeyRequest(*request_),))))


def test_public_key_encrypts_zero(secret: SecretKey) -> None:
    """b + a s is noise: read as a ciphertext under the live primes, the public key decrypts to zeros."""
    key = secret.public_key()
    back = wire.decode_public_key(wire.encode_public_key(key, PARAMS), PARAMS)
    b, a = back.polys
    assert b.shape == (4, 1024) and isinstance(a, SeededPoly)
    c1 = wire.expand_seed(a, (*PARAMS.primes, *PARAMS.special), 1024)
    zeros = secret.decrypt(CiphertextData(2, SCALE, (np.ascontiguousarray(b[:3]), np.ascontiguousarray(c1[:3]))))
    assert np.abs(zeros).max() < 2.0**10 / SCALE


def test_redacted_and_not_copied(secret: SecretKey) -> None:
    assert repr(secret) == "SecretKey(INSECURE-N1024-3+1, <redacted>)" == str(secret)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot pickle or copy a secret key"):
            attempt(secret)


def test_save_and_load(secret: SecretKey, slots: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "key"
    before = os.umask(0)
    try:
        secret.save(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600 and [p.name for p in tmp_path.iterdir()] == ["key"]
    again = SecretKey.load(path, PARAMS)
    assert np.abs(again.decrypt(secret.encrypt(slots, 1, SCALE)) - slots).max() < 2.0**-18
    secret.save(path)
    assert np.abs(secret.decrypt(SecretKey.load(path, PARAMS).encrypt(slots, 1, SCALE)) - slots).max() < 2.0**-18


def test_load_refuses(secret: SecretKey, tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(KeyMismatch, match="no file key"):
        SecretKey.load(path, PARAMS)
    secret.save(path)
    with pytest.raises(KeyMismatch) as caught:
        SecretKey.load(path, OTHER)
    assert caught.value.reason is Reason.KEY_PARAMETERS_DIFFER
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(WireError, match=f"{mode:04o}"):
            SecretKey.load(path, PARAMS)
    path.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(WireError):
        SecretKey.load(link, PARAMS)
    with pytest.raises(WireError):
        SecretKey.load(tmp_path, PARAMS)


def test_load_refuses_damage(secret: SecretKey, tmp_path: Path) -> None:
    path = tmp_path / "key"
    secret.save(path)
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-5] ^= 1
    damaged = [b"", good[:100], good[:-1], good + b"\0", bytes(flipped), b"x" + good[1:], good + bytes(1 << 20)]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(WireError):
            SecretKey.load(path, PARAMS)
    path.write_bytes(good)
    SecretKey.load(path, PARAMS)


def test_an_interrupted_save_leaves_the_old_file(
    secret: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    secret.save(path)
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(secret_file.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        SecretKey.generate(PARAMS).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["key"]


def test_a_real_parameter_set() -> None:
    primes = find_primes(4096, [34, 33, 37])
    params = CkksParams(4096, tuple(primes[:2]), tuple(primes[2:]))
    secret = SecretKey.generate(params)
    slots = np.linspace(-1, 1, params.slots)
    assert np.abs(secret.decrypt(secret.encrypt(slots, 1, 2.0**30)) - slots).max() < 2.0**-18
