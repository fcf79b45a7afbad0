"""Plans made for the native back end: gadgets by price, primes that its vector paths take, and what they promise."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from he_runtime import CompressedModel, Executor, Plan, compile, price, run_clear
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.candidate import Problem
from he_runtime.chain import best_chain
from he_runtime.compile import lower
from he_runtime.cost import CostTable, load_default
from he_runtime.cost.formulas import NARROW_BITS, WIDE, wide_share
from he_runtime.errors import BackendUnavailable, ParameterError, PlanError
from he_runtime.gadget import SEAL, Gadget
from he_runtime.gadget_choice import choices
from he_runtime.kernel import status
from he_runtime.plan.counts import plan_counts
from he_runtime.ring import EvaluationKeys
from model_prep.reference_models import random_reference
from tests.he_runtime.networks import NETWORKS

built = pytest.mark.skipif(not status().available, reason="the kernel is not built")


@pytest.fixture(scope="module")
def model() -> CompressedModel:
    return NETWORKS["mlp"]().calibrated("native")


@pytest.fixture(scope="module")
def table() -> CostTable:
    return load_default("native")


def planned(model: CompressedModel, table: CostTable, gadget: str | None) -> Plan:
    return compile(model, degrees=(16384,), max_error=1.0, table=table, gadget=gadget)


@pytest.mark.parametrize("gadget", ["hybrid-2", "hybrid-3"])
def test_a_plan_on_a_hybrid_gadget_has_its_special_primes(
    model: CompressedModel, table: CostTable, gadget: str
) -> None:
    plan = planned(model, table, gadget)
    assert plan.gadget == plan.keys.gadget == gadget
    assert len(plan.params.special) == Gadget.parse(gadget).alpha
    Gadget.parse(gadget).check(plan.params)
    assert all(q.bit_length() <= 50 for q in (*plan.params.primes, *plan.params.special))


def test_larger_digits_make_smaller_keys(model: CompressedModel, table: CostTable) -> None:
    seal, hybrid = planned(model, table, SEAL), planned(model, table, "hybrid-2")
    level = max(request.level for request in seal.keys.requests)
    each = [p.keys.requests[0].byte_size(p.params, gadget=p.gadget) for p in (seal, hybrid)]
    assert level >= 2 and each[1] < each[0]


@built
@pytest.mark.parametrize("gadget", [SEAL, "hybrid-2", "hybrid-3"])
def test_encrypted_equals_clear_within_the_predicted_error(
    model: CompressedModel, table: CostTable, gadget: str
) -> None:
    plan = planned(model, table, gadget)
    key, spec = SecretKey.generate(plan.params), plan.client_spec()
    executor = Executor(plan, "native")
    loaded = executor.load_keys(EvaluationKeys(plan.params.digest, {r.element: r for r in key.make_keys(plan.keys)}))
    inputs = NETWORKS["mlp"]().inputs(8)
    errors = []
    for x, expected in zip(inputs, run_clear(plan, inputs), strict=True):
        encrypted = [key.encrypt(slots, spec.input.level, spec.input.scale) for slots in spec.input.pack(x[None])]
        result = executor.run(encrypted, loaded)
        assert executor.counters == plan.counts_on("native")
        errors.append(spec.output.unpack(np.stack([key.decrypt(ct) for ct in result]))[0] - expected)
    assert 0 < float(np.abs(errors).max()) <= 1.5 * plan.error_bound  # random weights have tails (test_contract.py)


@pytest.mark.parametrize("backend", ["tenseal", pytest.param("pyfhel", marks=pytest.mark.pyfhel)])
def test_a_seal_backend_refuses_a_hybrid_plan(model: CompressedModel, table: CostTable, backend: str) -> None:
    with pytest.raises(BackendUnavailable, match="needs the native backend"):
        Executor(planned(model, table, "hybrid-2"), backend)


def test_an_unknown_gadget_is_refused(model: CompressedModel, table: CostTable) -> None:
    with pytest.raises(ParameterError, match="cannot use gadget"):
        planned(model, table, "hybrid-0")
    with pytest.raises(ParameterError, match="cannot plan for gadget 'hybrid-2' on back end 'tenseal'"):
        planned(model, load_default("tenseal"), "hybrid-2")


def test_choices_come_cheapest_first_and_long_primes_last(model: CompressedModel, table: CostTable) -> None:
    program, depth = lower(model, 16384, 1, table, pitched=False)
    problem = Problem(model, program, 16384, depth, 1.0)
    found = list(choices(problem, table))
    narrow, wide = found[:-3], found[-3:]
    assert all(c.prime_bits == 50 for _, c in narrow) and all(c.prime_bits > 50 for _, c in wide)
    many, few = ([(s, c) for s, c in narrow if (c.program is program) == own] for own in (True, False))
    assert narrow == many + few
    for same in (many, few):
        assert {c.gadget.name for _, c in same} == {SEAL, "hybrid-2", "hybrid-3", "hybrid-4"}
        rest = [seconds for seconds, c in same if c.gadget.name != SEAL]
        assert rest == sorted(rest)
    assert {c.gadget.name for _, c in wide} == {SEAL} and [c.first_bits == 50 for _, c in wide] == [True, False, False]
    seconds = [s for s, _ in wide]
    assert max(s for s, _ in narrow) < seconds[0] < seconds[1] and [c.program is program for _, c in wide] == [
        True,
        True,
        False,
    ]
    (only,) = choices(problem, load_default("tenseal"))
    assert only[1].gadget.name == SEAL and only[1].prime_bits > 50


def test_fewer_baby_steps_compute_the_same(model: CompressedModel, table: CostTable) -> None:
    program, depth = lower(model, 8192, 1, table)
    problem = Problem(model, program, 8192, depth, 1.0)
    even = problem.evenly_split()
    plans = [best_chain(p) for p in (problem, even)]
    x = NETWORKS["mlp"]().inputs(4)
    many, few = (run_clear(plan, x) for plan in plans)
    assert np.abs(many - few).max() < 1e-9 * np.abs(many).max()
    babies = [sum(p.split.babies for p in q.program.packing.packed.values()) for q in (problem, even)]
    assert (
        babies[1] < babies[0] and len(plans[1].vectors) <= len(plans[0].vectors) + 2
    )  # none of the other splits are kept


@pytest.mark.parametrize("name", ["digits-mlp", "digits-cnn", "mnist-mlp", "mnist-lola", "mnist-tenseal-cnn"])
def test_primes_that_the_vector_paths_take_hold_the_default_budget(name: str, table: CostTable) -> None:
    """Of untrained networks, whose margins are small. Longer primes take 3 to 5 times as long."""
    plan = compile(random_reference(name), table=table)
    assert plan.params.degree == 8192 and all(q < 1 << 50 for q in (*plan.params.primes, *plan.params.special))


def test_bits_move_from_one_level_to_another_where_the_budget_asks_for_it(table: CostTable) -> None:
    """And is not out of reach: on one axis after the other the search ends at a quarter more."""
    model = random_reference("mnist-lola")
    program, depth = lower(model, 8192, 1, table)
    problem = Problem(model, program, 8192, depth, 1.0, prime_bits=NARROW_BITS)
    easy = best_chain(problem).error_bound
    assert best_chain(replace(problem, budget=0.9 * easy)).error_bound < 0.85 * easy
    assert best_chain(replace(problem, budget=0.4 * easy)).error_bound == easy


def test_long_primes_are_priced_as_every_operation_was_measured_on_them(table: CostTable) -> None:
    """By the share of an operation's rows that they have; transforms suffer most, uploads not at all."""
    narrow, wide = (1 << 49) + 1, (1 << 58) + 1
    shares = [wide_share((narrow,) * (4 - k) + (wide,) * k) for k in range(5)]
    assert shares == [0, 0.25, 0.5, 0.75, 1]

    def seconds(leaf: str, share: float) -> float:
        return table.lookup(leaf, 8192, 1, wide=share).seconds

    assert all(seconds("rotate", b) > seconds("rotate", a) for a, b in pairwise(shares))
    assert seconds("rotate", 1) == pytest.approx(table.lookup(f"{WIDE}rotate", 8192, 1).seconds)
    ratios = {leaf: seconds(leaf, 1) / seconds(leaf, 0) for leaf in ("rescale", "mul_plain", "upload")}
    assert 1 <= ratios["upload"] < 1.5 < 2 < ratios["mul_plain"] < ratios["rescale"]
    assert load_default("tenseal").lookup("rotate", 8192, 1, wide=1.0) == load_default("tenseal").lookup(
        "rotate", 8192, 1
    )


def test_a_table_without_long_primes_does_not_price_them(table: CostTable) -> None:
    entries = {key: entry for key, entry in table.entries.items() if not key[0].startswith(WIDE)}
    with pytest.raises(PlanError, match=r"cannot price 'rotate' on primes above 2\^50.*try calibrating"):
        replace(table, entries=entries).lookup("rotate", 8192, 1, wide=0.5)


def test_babies_are_many_where_they_are_cheap(model: CompressedModel, table: CostTable) -> None:
    """Hoisted steps cost a third of a giant one, so the split moves towards them; the price follows the fused stages."""
    whole: dict[str, Any] = {"degrees": (8192,), "max_error": 1.0, "input_packings": ("plain",), "pitched": False}
    plan, plain = (compile(model, table=t, **whole) for t in (table, load_default("tenseal")))
    fused, other = plan_counts(plan, "native"), plan_counts(plain, "native")

    def total(counts: dict[tuple[str, int], int], leaf: str) -> int:
        return sum(n for (name, _), n in counts.items() if name == leaf)

    assert total(fused, "hoisted") >= 2 * total(fused, "giant")
    assert total(fused, "giant") <= total(other, "giant")
    assert price(plan, table).latency_ms <= price(plain, table).latency_ms
    assert set(price(plan, table).counts) >= {"decompose", "hoisted", "product", "divide"}
