"""Gadgets by name: digits, sizes, what parameters they need, and who may run them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from he_runtime import Plan, compile
from he_runtime.backends import open_backend
from he_runtime.client_spec import ClientSpec
from he_runtime.errors import BackendUnavailable, KeyMismatch, ParameterError, PlanError, Reason
from he_runtime.gadget import MAX_ALPHA, Gadget
from he_runtime.params import CkksParams, find_primes
from he_runtime.plan import store
from he_runtime.ring import EvaluationKeys, KeyRecord, KeyRequest, KeySetSpec
from tests.he_runtime.networks import cnn


def chain(live: list[float], special: list[float]) -> CkksParams:
    primes = find_primes(1024, [*live, *special])
    return CkksParams(1024, tuple(primes[: len(live)]), tuple(primes[len(live) :]), insecure=True)


def test_the_two_kinds_by_name() -> None:
    assert Gadget.parse("seal") == Gadget("seal", 1) and str(Gadget.parse("hybrid-12")) == "hybrid-12"
    assert [Gadget.parse(f"hybrid-{a}").alpha for a in (1, 2, 9, 10, MAX_ALPHA)] == [1, 2, 9, 10, MAX_ALPHA]


NOT_NAMES = [
    "",
    "SEAL",
    "hybrid",
    "hybrid-",
    "hybrid-0",
    "hybrid-02",
    "hybrid-64",
    "hybrid-999",
    "hybrid--1",
    "hybrid-2 ",
]
NOT_NAMES += ["hybrid-2\n", "hybrid-\u0662", "hybrid-1.5", " seal", "hybrid-" + "1" * 5000]


@pytest.mark.parametrize("text", [*NOT_NAMES, None, 1, ["seal"], {"seal": 1}])
def test_nothing_else_is_a_gadget(text: object) -> None:
    with pytest.raises(ParameterError) as caught:
        Gadget.parse(text)
    assert caught.value.reason is Reason.VERSION_UNKNOWN and len(caught.value.message) < 250


@given(st.integers(1, MAX_ALPHA), st.integers(0, 62))
def test_digits_cut_the_live_primes_in_order(alpha: int, level: int) -> None:
    gadget = Gadget.parse(f"hybrid-{alpha}")
    digits = gadget.digits(level)
    assert [j for digit in digits for j in digit] == list(range(level + 1))
    assert len(digits) == gadget.digit_count(level) == math.ceil((level + 1) / alpha)
    assert all(len(digit) == alpha for digit in digits[:-1]) and 1 <= len(digits[-1]) <= alpha
    assert all(digit.start == d * alpha for d, digit in enumerate(digits))


def test_seal_has_one_special_prime_of_any_size() -> None:
    Gadget.parse("seal").check(chain([45, 40], [30]))
    with pytest.raises(ParameterError, match="2 special primes"):
        Gadget.parse("seal").check(chain([45, 40], [46, 46.5]))


COVERS = [
    *((1, [46], True), (1, [44], False), (2, [46, 45], True), (2, [46, 38], False), (2, [50], False)),
    *((3, [46, 46, 40], True), (3, [59, 59], False), (9, [50, 50, 50, 50], True), (9, [50, 50, 50], False)),
]


@pytest.mark.parametrize(("alpha", "special", "fits"), COVERS)
def test_hybrid_special_primes_cover_the_largest_digit(alpha: int, special: list[float], fits: bool) -> None:
    """Digits of 45, 40, 40, 40 bits: the largest is the first one, of 45 + 40 (alpha - 1) bits."""
    params, gadget = chain([45, 40, 40, 40], special), Gadget.parse(f"hybrid-{alpha}")
    assert fits == (math.prod(params.special) >= math.prod(params.primes[:alpha]))
    if fits:
        return gadget.check(params)
    with pytest.raises(ParameterError, match="at least the largest digit"):
        gadget.check(params)


def test_every_group_of_the_full_chain_counts_also_the_last() -> None:
    with pytest.raises(ParameterError, match="at least the largest digit"):
        Gadget.parse("hybrid-2").check(chain([30, 30, 50, 50], [40, 41]))
    with pytest.raises(ParameterError, match="at least the largest digit"):
        Gadget.parse("hybrid-2").check(chain([30, 30, 50], [49]))


def test_byte_sizes() -> None:
    params = chain([45, 40, 40, 40], [46, 45])
    request, row = KeyRequest(3, 2), 1024 * 8
    assert request.byte_size(params, gadget="hybrid-2") == 2 * 2 * 5 * row
    assert request.byte_size(params, seeded=True, gadget="hybrid-2") == 2 * 5 * row
    assert request.byte_size(params, gadget="hybrid-3") == 1 * 2 * 5 * row
    assert KeySetSpec((request, KeyRequest(0, 0)), "hybrid-2").byte_size(params) == (2 * 2 * 5 + 2 * 3) * row
    assert KeyRequest(3, 2).byte_size(chain([45, 40, 40], [46])) == 3 * 2 * 4 * row


def test_keys_of_another_gadget_do_not_serve() -> None:
    params = chain([45, 40], [46, 45])
    spec = KeySetSpec((KeyRequest(3, 1),), "hybrid-2")
    EvaluationKeys(params.digest, {3: KeyRecord(3, 1, (), "hybrid-2")}).require(spec, params)
    for other in ("seal", "hybrid-1"):
        with pytest.raises(KeyMismatch, match="on 'hybrid-2'") as caught:
            EvaluationKeys(params.digest, {3: KeyRecord(3, 1, (), other)}).require(spec, params)
        assert caught.value.reason is Reason.KEY_PARAMETERS_DIFFER


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile(cnn().calibrated("cnn"), max_error=1.0)


def on_gadget(plan: Plan, gadget: str, special: int) -> Plan:
    """The same plan, INSECURE, with so many special primes of 59 bits."""
    params = plan.params
    taken = {*params.primes, *params.special}
    more = [q for q in find_primes(params.degree, [59.0] * 8) if q not in taken]
    changed = CkksParams(params.degree, params.primes, tuple(more[:special]), insecure=True)
    return replace(plan, params=changed, gadget=gadget)


def test_a_hybrid_plan_is_stored_and_names_its_keys(plan: Plan, tmp_path: Path) -> None:
    hybrid = on_gadget(plan, "hybrid-2", 2)
    loaded = Plan.load(hybrid.save(tmp_path))
    assert loaded.gadget == loaded.keys.gadget == "hybrid-2" and loaded.digest == hybrid.digest != plan.digest
    assert plan.keys.gadget == "seal" and loaded.keys.requests == plan.keys.requests


def test_a_hybrid_client_spec_is_parsed(plan: Plan) -> None:
    spec = on_gadget(plan, "hybrid-2", 2).client_spec("1")
    assert ClientSpec.parse(spec.to_json()).keys == spec.keys and spec.keys.gadget == "hybrid-2"


@pytest.mark.parametrize("text", ["hybrid", "hybrid-0", "hybrid-02", "hybrid-64", None, 2, ["hybrid-2"]])
def test_unknown_gadgets_in_a_plan_or_a_spec(plan: Plan, tmp_path: Path, text: object) -> None:
    path = plan.save(tmp_path)
    structure = json.loads((path / "plan.json").read_bytes()) | {"gadget": text}
    data = json.dumps(structure).encode()
    (path / "plan.json").write_bytes(data)
    (path / "DIGEST").write_text(store._digest(data, (path / "vectors.safetensors").read_bytes()))
    with pytest.raises(PlanError, match="gadget") as caught:
        Plan.load(path)
    assert caught.value.reason is Reason.PLAN_VERSION_UNKNOWN
    record = json.loads(plan.client_spec("1").to_json()) | {"gadget": text}
    with pytest.raises(PlanError, match="gadget") as caught:
        ClientSpec.parse(json.dumps(record).encode())
    assert caught.value.reason is Reason.VERSION_UNKNOWN


@pytest.mark.parametrize(("gadget", "special"), [("seal", 2), ("hybrid-2", 1)])
def test_a_gadget_that_the_parameters_do_not_have(plan: Plan, tmp_path: Path, gadget: str, special: int) -> None:
    wrong = on_gadget(plan, gadget, special)
    with pytest.raises(ParameterError):
        Plan.load(wrong.save(tmp_path))
    with pytest.raises(ParameterError):
        ClientSpec.parse(wrong.client_spec("1").to_json())


@pytest.mark.parametrize("backend", ["tenseal", "pyfhel"])
@pytest.mark.parametrize(("gadget", "special"), [("hybrid-2", 2), ("hybrid-1", 1)])
def test_a_seal_backend_refuses_a_hybrid_plan(plan: Plan, backend: str, gadget: str, special: int) -> None:
    with pytest.raises(BackendUnavailable, match="needs the native backend") as caught:
        open_backend(backend, on_gadget(plan, gadget, special))
    assert caught.value.reason is Reason.BACKEND_UNAVAILABLE
