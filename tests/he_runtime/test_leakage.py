"""What a client can infer of the zeros of a model: with the disclosure "shape" nothing from keys, work, levels or sizes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from he_runtime import CompressedModel, Executor, Plan, compile, price, run_clear
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.cost import load_default
from he_runtime.errors import DoesNotFit, ParameterError, PlanError
from he_runtime.kernel import status
from he_runtime.plan import SHAPE, verify
from he_runtime.reference import calibrate, forward
from he_runtime.ring import EvaluationKeys
from tests.he_runtime.networks import NETWORKS, Builder

MAX_ERROR = 0.5
native = pytest.param("native", marks=pytest.mark.skipif(not status().available, reason="the kernel is not built"))


def _mlp() -> Builder:
    b = Builder((64,))
    b.dense(64, 32)
    b.square((32,))
    b.dense(32, 32)
    b.quadratic((32,))
    b.dense(32, 10)
    return b


def _pruned(builder: Builder, keep: str) -> CompressedModel:
    """The network with its weights pruned in some way, but for the last layer."""
    weights = [k for k in builder.arrays if k.endswith(".weight")]
    for key in weights[:-1]:
        w = builder.arrays[key]
        if keep == "tenth":
            w *= builder.rng.random(w.shape) < 0.1
        elif keep == "signs":  # products by 1 and -1 are additions where a plan may show it
            builder.arrays[key] = np.where(w > 0, 0.125, -0.125)
        elif keep == "diagonals" and w.ndim == 2:
            rows, columns = np.indices(w.shape)
            w *= (columns - rows) % 16 == 0
    if keep == "none":  # a whole layer, its biases, and an activation's channels
        builder.arrays[weights[1]][:] = 0.0
        for key, values in builder.arrays.items():
            if key.endswith(".bias") or (values.ndim == 1 and key.endswith((".a", ".b"))):
                values[: len(values) // 2] = 0.0
    return builder.calibrated("net")


KINDS = ("all", "tenth", "signs", "diagonals", "none")


@cache
def _model(kind: str, network: str = "mlp") -> CompressedModel:
    return _pruned(_mlp() if network == "mlp" else NETWORKS[network](), kind)


@cache
def _plan(kind: str, disclosure: str = "shape", backend: str = "tenseal", network: str = "mlp") -> Plan:
    return compile(
        _model(kind, network), max_error=MAX_ERROR, disclosure=disclosure, magnitude=64.0, table=load_default(backend)
    )


def _public(plan: Plan) -> dict[str, Any]:
    """A plan's client spec without the digests, which name the weights and say nothing else of them."""
    return {k: v for k, v in json.loads(plan.client_spec().to_json()).items() if k != "plan_digest"}


def _work(plan: Plan) -> list[Any]:
    """Every operation with its operands' levels, scales and periods: all that time could depend on."""
    operands = [(p.level, p.scale, len(plan.vectors[p.vector])) for p in plan.plaintexts]
    cells = [None if op.cells is None else op.cells.tolist() for op in plan.ops]
    return [plan.ops, cells, plan.values, plan.plaintexts, operands, plan.signs, plan.gadget, plan.detours]


@pytest.mark.parametrize(("kind", "backend"), [*((kind, "tenseal") for kind in KINDS[1:]), ("signs", "native")])
def test_networks_of_one_shape_look_alike_to_clients(kind: str, backend: str) -> None:
    dense, pruned = _plan("all", backend=backend), _plan(kind, backend=backend)
    assert _public(pruned) == _public(dense)
    assert pruned.keys == dense.keys
    assert _work(pruned) == _work(dense)
    assert pruned.counts_on(backend) == dense.counts_on(backend)
    assert price(pruned, load_default(backend)) == price(dense, load_default(backend))
    assert pruned.digest != dense.digest


def test_without_it_they_do_not() -> None:
    dense, pruned = _plan("all", "structure"), _plan("diagonals", "structure")
    assert pruned.keys != dense.keys and pruned.counts != dense.counts


@pytest.mark.parametrize("network", ["cnn", "residual"])
def test_the_same_holds_for_convolutions_and_branches(network: str) -> None:
    kinds = ("all", "tenth")
    plans = [
        compile(
            _model(kind, network), max_error=4.0, disclosure="shape", magnitude=1024.0, table=load_default("tenseal")
        )
        for kind in kinds
    ]
    for plan, kind in zip(plans, kinds, strict=True):
        assert (_public(plan), _work(plan)) == (_public(plans[0]), _work(plans[0]))
        x = NETWORKS[network]().inputs(3)
        expected = forward(_model(kind, network), x)
        np.testing.assert_allclose(run_clear(plan, x), expected, atol=1e-9 * max(1.0, float(np.abs(expected).max())))


def _polynomial(pruned: bool) -> CompressedModel:
    b = Builder((16,))
    b.dense(16, 16)
    coefficients = b.rng.normal(size=(16, 6)) * 0.2
    if pruned:
        b.arrays["dense0.weight"] *= b.rng.random((16, 16)) < 0.2
        coefficients[3:9] = 0.0  # neurons without an activation
    b.add("polynomial", (16,), {"basis": "chebyshev", "low": -6.0, "high": 6.0}, coefficients=coefficients)
    b.dense(16, 4)
    return b.calibrated("net")


def test_pruned_activations_stay() -> None:
    plans = [
        compile(_polynomial(pruned), max_error=1.0, disclosure="shape", table=load_default("tenseal"))
        for pruned in (False, True)
    ]
    assert (_public(plans[0]), _work(plans[0])) == (_public(plans[1]), _work(plans[1]))
    x = Builder((16,)).inputs(3)
    np.testing.assert_allclose(run_clear(plans[1], x), forward(_polynomial(True), x), atol=1e-9)


def test_batches_have_it_too() -> None:
    """One feature per ciphertext: where a structure shows as every single product."""
    plans = [
        compile(_small(density), degrees=(8192,), batch=4096, max_error=1.0, disclosure="shape", magnitude=16.0)
        for density in (1.0, 0.2)
    ]
    assert (_public(plans[0]), _work(plans[0])) == (_public(plans[1]), _work(plans[1]))
    assert sum(plans[0].counts.values()) > sum(
        compile(_small(0.2), degrees=(8192,), batch=4096, max_error=1.0).counts.values()
    )


def _small(density: float) -> CompressedModel:
    b = Builder((6,))
    b.dense(6, 4, density=density)
    b.dense(4, 3)
    b.square((3,))
    return b.calibrated("net")


@cache
def _secret() -> tuple[SecretKey, EvaluationKeys]:
    """One key set serves every model of the shape, which is the point."""
    plan = _plan("all")
    key = SecretKey.generate(plan.params)
    return key, EvaluationKeys(plan.params.digest, {r.element: r for r in key.make_keys(plan.keys)})


@cache
def _run(kind: str, backend: str) -> tuple[Counter[tuple[str, int]], float, int]:
    """Counters of an encrypted run, its largest error against the plain graph, and the reply's size in words."""
    plan, (key, keys) = _plan(kind), _secret()
    executor, spec = Executor(plan, backend), plan.client_spec()
    loaded = executor.load_keys(keys)
    inputs = _mlp().inputs(2)
    worst, words = 0.0, 0
    for x, expected in zip(inputs, forward(_model(kind), inputs), strict=True):
        encrypted = [key.encrypt(slots, spec.input.level, spec.input.scale) for slots in spec.input.pack(x[None])]
        reply = executor.run(encrypted, loaded)
        assert executor.counters == plan.counts_on(backend)
        words = sum(np.asarray(p).size for ct in reply for p in ct.polys)
        got = spec.output.unpack(np.stack([key.decrypt(ct) for ct in reply]))[0]
        worst = max(worst, float(np.abs(got - expected).max()))
    return executor.counters, worst, words


@pytest.mark.parametrize("backend", ["tenseal", native])
@pytest.mark.parametrize("kind", KINDS)
def test_encrypted_runs_agree_within_the_promised_error(kind: str, backend: str) -> None:
    counters, worst, words = _run(kind, backend)
    reference = _run("all", backend)
    assert 0 < worst <= _plan(kind).error_bound == pytest.approx(MAX_ERROR)
    assert (counters, words) == (reference[0], reference[2])


def _auc(negative: list[float], positive: list[float]) -> float:
    """The chance that a threshold tells one of each apart, ties counting half."""
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return wins / (len(positive) * len(negative))


def test_a_classifier_of_the_work_done_is_blind() -> None:
    """Times are noisy on a shared machine, so what they follow is classified: operations weighed by the cost table."""
    table = load_default("tenseal")

    def seconds(counts: Counter[tuple[str, int]], degree: int) -> float:
        return sum(n * table.lookup(leaf, degree, level).seconds for (leaf, level), n in counts.items())

    degree = _plan("all").params.degree
    shown = [seconds(_plan(k, "structure").counts, degree) for k in ("all", "diagonals")]
    assert _auc(shown[:1], shown[1:]) != 0.5  # the classifier can tell
    runs = {kind: seconds(_run(kind, "tenseal")[0], degree) for kind in KINDS}
    for kind in KINDS[1:]:
        assert _auc([runs["all"]], [runs[kind]]) == 0.5


def test_the_plan_says_so_and_survives_the_disk(tmp_path: Any) -> None:
    plan = _plan("tenth")
    assert "shape only" in plan.listing() and "shape only" not in _plan("all", "structure").listing()
    loaded = Plan.load(plan.save(tmp_path / "plan"))
    assert loaded.disclosure == SHAPE and loaded.digest == plan.digest and _work(loaded) == _work(plan)
    with pytest.raises(PlanError, match="discloses"):
        verify(replace(plan, disclosure="everything"))


def test_what_cannot_be_hidden_is_refused() -> None:
    model = _model("all")
    with pytest.raises(ParameterError, match="disclosure"):
        compile(model, disclosure="nothing")
    with pytest.raises(ParameterError, match="gather"):
        compile(model, disclosure="shape", input_packings=("gathered",))
    with pytest.raises(DoesNotFit, match="magnitude"):
        compile(model, disclosure="shape", magnitude=2.0**-6, max_error=MAX_ERROR)
    with pytest.raises(DoesNotFit, match="max_error"):
        loud = calibrate(model, _mlp().inputs(64))
        compile(loud.with_(metadata={"median_margin": 1e-9}), disclosure="shape")


def test_the_input_is_never_gathered() -> None:
    """A first layer of short rows is gathered where the plan may show it."""
    b = Builder((256,))
    b.dense(256, 128, density=0.02)
    b.square((128,))
    b.dense(128, 10)
    model = b.calibrated("net")
    layouts = {}
    for disclosure in ("structure", "shape"):
        plan = compile(model, max_error=1.0, disclosure=disclosure, magnitude=64.0, table=load_default("tenseal"))
        layouts[disclosure] = plan.layers[0].layout
    assert "gathered" in layouts["structure"] and "gathered" not in layouts["shape"]
