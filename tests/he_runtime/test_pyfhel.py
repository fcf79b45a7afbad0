"""Pyfhel evaluates the same plans with the same client keys as TenSEAL, down to the last bit."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from he_runtime.backends.pyfhel_bridge import galois_permutation, make_context, seal_parms_id
from he_runtime.backends.seal_bridge import make_context as make_tenseal_context
from he_runtime.backends.seal_bridge import parms_id
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.errors import BackendUnavailable, CiphertextMismatch, KeyMismatch, ParameterError, Reason
from he_runtime.execute import Executor, run_clear
from he_runtime.params import CkksParams, find_primes
from he_runtime.plan import Kind, Op, Plaintext, Plan, Port, ValueType
from he_runtime.plan.ops import TYPING
from he_runtime.ring import CiphertextData, EvaluationKeys

PRIMES = find_primes(1024, [60.0, 40.0, 40.0, 60.0])
PARAMS = CkksParams(1024, tuple(PRIMES[:3]), tuple(PRIMES[3:]), insecure=True)
TOP = PARAMS.max_level
X = ValueType(TOP, 2.0**36)
VECTORS = [np.random.default_rng(7).uniform(-1, 1, PARAMS.slots) for _ in range(4)] + [np.array([-0.75])]
PLAINTEXTS = [Plaintext(i, TOP, 2.0**20) for i in range(4)] + [
    Plaintext(0, TOP, X.scale),
    Plaintext(4, TOP, X.scale),
    Plaintext(4, TOP, 2.0**20),
    Plaintext(1, 0, 2.0**20),
    Plaintext(2, TOP, 2.0**40),
]
CELLS = np.array([[0, 0, 0, 0, 0], [0, 0, 3, 0, 1], [0, 0, 0, 16, 2], [0, 0, 3, 16, 3]])

# Every leaf and the composite, as a chain of (kind, further input, plaintext, step) from one input.
CHAINS: dict[str, list[tuple[Kind, tuple[int, ...], int, int]]] = {
    "add": [(Kind.ROTATE, (), -1, 1), (Kind.ADD, (0,), -1, 0)],
    "add_plain": [(Kind.ADD_PLAIN, (), 4, 0)],
    "add_constant": [(Kind.ADD_PLAIN, (), 5, 0)],
    "mul_plain": [(Kind.MUL_PLAIN, (), 1, 0)],
    "mul_constant": [(Kind.MUL_PLAIN, (), 6, 0)],
    "mul": [(Kind.ROTATE, (), -1, 7), (Kind.MUL, (0,), -1, 0)],
    "square": [(Kind.SQUARE, (), -1, 0)],
    "relinearize": [(Kind.SQUARE, (), -1, 0), (Kind.RELINEARIZE, (), -1, 0)],
    "rescale": [(Kind.MUL_PLAIN, (), 8, 0), (Kind.RESCALE, (), -1, 0)],
    "mod_switch": [(Kind.MOD_SWITCH, (), -1, 0)],
    "lower_plaintext": [(Kind.MOD_SWITCH, (), -1, 0), (Kind.MOD_SWITCH, (), -1, 0), (Kind.MUL_PLAIN, (), 7, 0)],
    "rotate": [(Kind.ROTATE, (), -1, PARAMS.slots - 3)],
    "conjugate": [(Kind.ROTATE, (), -1, 1), (Kind.CONJUGATE, (), -1, 0)],
    "linear_transform": [(Kind.LINEAR_TRANSFORM, (), -1, 0)],
    "layer": [
        (Kind.LINEAR_TRANSFORM, (), -1, 0),
        (Kind.SQUARE, (), -1, 0),
        (Kind.RESCALE, (), -1, 0),
        (Kind.RELINEARIZE, (), -1, 0),
        (Kind.ROTATE, (), -1, 3),
    ],
}


def make_plan(chain: list[tuple[Kind, tuple[int, ...], int, int]]) -> Plan:
    types, ops = [X], []
    for kind, more, plaintext, step in chain:
        cells = CELLS if kind is Kind.LINEAR_TRANSFORM else None
        op = Op(kind, (len(types) - 1, *more), (len(types),), "probe", plaintext, step, cells)
        operand = PLAINTEXTS[plaintext] if plaintext >= 0 else None
        linear = kind is Kind.LINEAR_TRANSFORM
        types.append(
            ValueType(types[-1].level, types[-1].scale * PLAINTEXTS[0].scale)
            if linear
            else TYPING[kind](op, [types[i] for i in op.inputs], operand, PARAMS)
        )
        ops.append(op)
    identity = np.arange(PARAMS.slots, dtype=np.int32)[None]
    shape = (PARAMS.slots,)
    return Plan(
        model_name="probe",
        model_digest="0" * 64,
        params=PARAMS,
        ops=tuple(ops),
        values=tuple(types),
        vectors=tuple(VECTORS),
        plaintexts=tuple(PLAINTEXTS),
        inputs=(Port("x", shape, (0,), identity),),
        outputs=(Port("y", shape, (len(types) - 1,), identity),),
    )


@pytest.fixture(scope="module")
def secret() -> SecretKey:
    return SecretKey.generate(PARAMS)


def client_keys(secret: SecretKey, plan: Plan) -> EvaluationKeys:
    return EvaluationKeys(PARAMS.digest, {r.element: r for r in secret.make_keys(plan.keys)})


def residues(data: CiphertextData) -> list[np.ndarray]:
    return [p for p in data.polys if isinstance(p, np.ndarray)]


@pytest.mark.pyfhel
@pytest.mark.parametrize("name", CHAINS)
def test_bits_equal_tenseal_and_values_equal_clear(name: str, secret: SecretKey) -> None:
    plan = make_plan(CHAINS[name])
    x = np.random.default_rng(1).uniform(-1, 1, PARAMS.slots)
    keys, encrypted = client_keys(secret, plan), secret.encrypt(x, X.level, X.scale)
    results = {}
    for backend in ("tenseal", "pyfhel"):
        executor = Executor(plan, backend)
        (results[backend],) = executor.run([encrypted], executor.load_keys(keys))
        assert executor.counters == plan.counts
    ours, theirs = results["pyfhel"], results["tenseal"]
    assert (ours.level, ours.scale, len(ours.polys)) == (theirs.level, theirs.scale, len(theirs.polys))
    for a, b in zip(residues(ours), residues(theirs), strict=True):
        np.testing.assert_array_equal(a, b)
    # Key switching and encoding leave some 2^10 of noise at a scale of 2^36 and more, times values of at most 16.
    np.testing.assert_allclose(secret.decrypt(ours), run_clear(plan, x[None])[0], atol=2.0**-9)


@pytest.mark.pyfhel
def test_parameter_identifiers_are_seals() -> None:
    context = make_tenseal_context(PARAMS)
    for level in range(TOP + 1):
        assert seal_parms_id(PARAMS.degree, PARAMS.primes[: level + 1]) == parms_id(context, level)
    assert seal_parms_id(PARAMS.degree, (*PARAMS.primes, *PARAMS.special)) == tuple(context.key_parms_id())
    assert make_context(PARAMS).parms_ids[TOP] == parms_id(context, TOP)


def test_galois_permutations_compose_and_invert() -> None:
    x = np.random.default_rng(3).integers(0, 1 << 40, 64)
    three, five = galois_permutation(64, 3), galois_permutation(64, 5)
    np.testing.assert_array_equal(x[three][five], x[galois_permutation(64, 15)])
    np.testing.assert_array_equal(x[three][galois_permutation(64, pow(3, -1, 128))], x)
    assert (x[three] != x).any()


@pytest.mark.pyfhel
def test_missing_and_foreign_keys_are_refused(secret: SecretKey) -> None:
    plan = make_plan(CHAINS["layer"])
    keys, executor = client_keys(secret, plan), Executor(plan, "pyfhel")
    element = PARAMS.galois_element(3)
    with pytest.raises(KeyMismatch, match=f"Galois element {element}") as missing:
        executor.load_keys(replace(keys, records={e: r for e, r in keys.records.items() if e != element}))
    assert missing.value.reason is Reason.KEY_MISSING
    with pytest.raises(KeyMismatch) as foreign:
        executor.load_keys(replace(keys, params_digest="f" * 64))
    assert foreign.value.reason is Reason.KEY_PARAMETERS_DIFFER
    cut = replace(keys.records[element], digits=keys.records[element].digits[:1])
    with pytest.raises(KeyMismatch, match="digits do not fit"):
        executor.load_keys(replace(keys, records={**keys.records, element: cut}))


@pytest.mark.pyfhel
def test_a_rotation_without_its_key_is_refused_rather_than_composed(secret: SecretKey) -> None:
    plan = make_plan(CHAINS["rotate"])
    backend = Executor(plan, "pyfhel").backend
    evaluator = backend.evaluator_for(backend.load_keys(client_keys(secret, plan)))
    value = evaluator.upload(secret.encrypt(np.zeros(PARAMS.slots), X.level, X.scale))
    for call in (lambda: evaluator.rotate(value, 2), lambda: evaluator.conjugate(value)):
        with pytest.raises(KeyMismatch, match="got no key"):
            call()
    with pytest.raises(KeyMismatch, match="cannot relinearize"):
        evaluator.relinearize(evaluator.square(value))


@pytest.mark.pyfhel
def test_malformed_ciphertexts_are_refused(secret: SecretKey) -> None:
    context = make_context(PARAMS)
    good = context.download_ciphertext(context.upload_ciphertext(secret.encrypt(np.zeros(PARAMS.slots), 1, 2.0**30)))
    b, a = residues(good)
    for bad in (
        replace(good, level=TOP + 1),
        replace(good, polys=(b,)),
        replace(good, polys=(b, a[:1])),
        replace(good, polys=(b[:, :512], a[:, :512])),
    ):
        with pytest.raises(CiphertextMismatch):
            context.upload_ciphertext(bad)


def test_more_than_one_special_prime_is_refused() -> None:
    two = CkksParams(1024, PARAMS.primes[:2], (*PARAMS.special, PARAMS.primes[2]), insecure=True)
    with pytest.raises(ParameterError, match="special primes"):
        make_context(two)


def test_without_pyfhel_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Pyfhel", None)
    with pytest.raises(BackendUnavailable, match="make pyfhel"):
        make_context(PARAMS)
