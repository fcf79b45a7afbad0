"""Gathered inputs: the client brings every output its inputs, so that the first layer takes products and folds only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime import Executor, Plan, compile, price, run_clear
from he_runtime.backends import BACKENDS
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.client_spec import ClientSpec
from he_runtime.cost import load_default
from he_runtime.errors import DoesNotFit, ParameterError
from he_runtime.layout import Layout, contiguous, image
from he_runtime.lower.diagonals import pack
from he_runtime.lower.gather import gathered, gathered_set
from he_runtime.lower.input_layouts import reaches
from he_runtime.lower.maps import LinearMap
from he_runtime.plan.counts import layer_counts, leaf_totals
from he_runtime.ring import EvaluationKeys
from tests.he_runtime.networks import NETWORKS, Builder
from tests.he_runtime.packing_checks import assert_equals_graph

Floats = npt.NDArray[np.float64]
TENSEAL = load_default("tenseal")
DEGREE = 8192
SLOTS = DEGREE // 2
OTHERS = ("plain", "windows", "staggered")


def rows_of(lengths: npt.NDArray[np.int64], columns: int, rng: np.random.Generator) -> Floats:
    """A matrix whose row r has lengths[r] non-zeros, anywhere."""
    weight = np.zeros((len(lengths), columns))
    for row, length in enumerate(lengths):
        weight[row, rng.choice(columns, length, replace=False)] = rng.uniform(0.5, 1.0, length) / np.sqrt(
            max(1, length)
        )
    return weight


def sparse_mlp(lengths: npt.NDArray[np.int64], columns: int = 784) -> Builder:
    """One layer of rows of these lengths, a square, ten outputs."""
    b, rows = Builder((columns,)), len(lengths)
    b.add("dense", (rows,), weight=rows_of(lengths, columns, b.rng), bias=b.rng.normal(size=rows) * 0.1)
    b.square((rows,))
    b.dense(rows, 10)
    return b


def plan_of(b: Builder, *packings: str, degree: int = DEGREE, batch: int = 1) -> Plan:
    chosen = {"input_packings": packings} if packings else {}
    return compile(b.calibrated(), max_error=1.0, degrees=(degree,), table=TENSEAL, batch=batch, **chosen)  # type: ignore[arg-type]


def first_layer(plan: Plan) -> dict[str, int]:
    return leaf_totals(next(iter(layer_counts(plan).values())))


def evaluated(map_: LinearMap, target: Layout, x: Floats) -> tuple[Floats, int]:
    """The sums that the packed layer makes of what the client packs: (output ciphertexts, slots), and the products."""
    source = gathered(map_, target, 64)
    assert source is not None
    packed = pack(map_, target, gathered_set(source))
    assert packed.split.rotations == 0, "nothing but the folds turns"
    sent = np.append(x, 0.0)[source.slot_map]
    out = np.zeros((target.ciphertexts, target.slots))
    for (output, entry, _), vector in zip(packed.diagonals.cells, packed.vectors, strict=True):
        out[output] += np.resize(vector, target.slots) * sent[entry]
    for fold in packed.diagonals.folds:
        out += np.roll(out, -fold, axis=1)
    return out, packed.diagonals.products


@settings(max_examples=120, deadline=None)
@given(
    rows=st.integers(1, 90),
    columns=st.integers(1, 70),
    density=st.sampled_from([0.02, 0.1, 0.5, 1.0]),
    slots=st.sampled_from([32, 128, 1024]),
    seed=st.integers(0, 2**16),
)
def test_the_gather_computes_the_matrix_product(rows: int, columns: int, density: float, slots: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < density)
    weight[rng.integers(rows), rng.integers(columns)] = 1.0
    map_ = LinearMap(sp.csr_array(weight), np.zeros(rows)).without_zeros()
    target, x = contiguous((rows,), slots), rng.normal(size=columns)
    if gathered(map_, target, 64) is None:
        assert -(-rows // slots) * columns > 64 or columns * target.period > 64 * slots, (
            "it takes more than 64 ciphertexts"
        )
        return
    out, products = evaluated(map_, target, x)
    np.testing.assert_allclose(out, np.append(weight @ x, 0.0)[target.slot_map], atol=1e-9)
    if rows <= slots:
        longest = int(np.count_nonzero(weight, axis=1).max())
        assert products == -(-longest * target.period // slots)


def test_the_gather_follows_the_layout_of_the_output() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2 * 3 * 3, 40)) * (rng.random((18, 40)) < 0.2)
    target = image((2, 3, 3), 256, (6, 6), 2, 36)
    map_ = LinearMap(sp.csr_array(weight), np.zeros(18))
    x = rng.normal(size=40)
    out, _ = evaluated(map_, target, x)
    np.testing.assert_allclose(out, np.append(weight @ x, 0.0)[target.slot_map], atol=1e-9)
    source = gathered(map_, target, 64)
    assert source is not None and reaches([source], target)
    assert not reaches([source], contiguous((18,), 256)), "it is of no use for another"


@settings(max_examples=12, deadline=None)
@given(
    channels=st.integers(1, 3),
    size=st.integers(5, 9),
    outputs=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    density=st.sampled_from([0.3, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_a_gathered_convolution_computes_the_graph(
    channels: int,
    size: int,
    outputs: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    density: float,
    seed: int,
) -> None:
    b = Builder((channels, size, size), seed)
    shape = b.conv((channels, size, size), outputs, kernel, stride, padding, dilation=dilation)
    weight = b.arrays["conv2d0.weight"]
    weight *= b.rng.random(weight.shape) < density
    weight[:, 0, 0, 0] = 1.0  # no filter is empty
    b.square(shape)
    b.add("reshape", (int(np.prod(shape)),))
    b.dense(int(np.prod(shape)), 3)
    plan = plan_of(b, "gathered")
    assert_equals_graph(b, b.calibrated(), plan)
    assert first_layer(plan)["mul_plain"] == len(plan.inputs[0].values), "one product per uploaded ciphertext"


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 200), st.integers(1, 120), st.sampled_from([0.02, 0.1, 1.0]), st.integers(0, 2**16))
def test_a_gathered_dense_layer_computes_the_graph(columns: int, rows: int, density: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    b = sparse_mlp(np.maximum(1, rng.binomial(columns, density, rows)), columns)
    assert_equals_graph(b, b.calibrated(), plan_of(b, "gathered"))


def test_an_output_of_several_ciphertexts_has_its_own_inputs() -> None:
    b = Builder((1, 40, 40))
    b.conv((1, 40, 40), 2, 3, 1, 1)
    plan = plan_of(b, "gathered", degree=4096)
    assert len(plan.outputs[0].values) == 2 and len(plan.inputs[0].values) == 18, "nine taps for each of two"
    assert first_layer(plan)["mul_plain"] == 18 and "rotate" not in first_layer(plan)
    assert_equals_graph(b, b.calibrated(), plan)


@pytest.mark.parametrize("batch", [4, 64])
def test_samples_of_a_batch_are_gathered_together(batch: int) -> None:
    b = sparse_mlp(np.full(16, 5), 60)
    assert_equals_graph(b, b.calibrated(), plan_of(b, "gathered", batch=batch))


@pytest.mark.parametrize(("rows", "length"), [(128, 47), (128, 64), (64, 50), (100, 47), (256, 33)])
def test_rows_of_equal_length_fill_the_slots(rows: int, length: int) -> None:
    """Closed form: ceil(non-zeros / slots) products, where rows count up to a power of two; log2(steps) rotations."""
    plan = plan_of(sparse_mlp(np.full(rows, length)), "gathered")
    stride = 1 << (rows - 1).bit_length()
    counts = first_layer(plan)
    assert counts["mul_plain"] == -(-length * stride // SLOTS) == len(plan.inputs[0].values)
    assert counts["rotate"] == np.log2(SLOTS // stride)
    if rows == stride:
        assert counts["mul_plain"] == -(-rows * length // SLOTS), "padding adds nothing"


def test_rows_of_unequal_length_pay_for_the_longest() -> None:
    lengths = np.full(128, 47)
    lengths[1:65], lengths[65:] = 30, 64  # one row of 47, fewer before it, more after
    lengths[64] = 300
    uneven = first_layer(plan_of(sparse_mlp(lengths), "gathered"))
    assert -(-int(lengths.sum()) // SLOTS) == 2, "as many as balanced rows would take"
    assert uneven["mul_plain"] == -(-300 * 128 // SLOTS) == 10


def test_a_layer_of_few_steps_folds_less() -> None:
    plan = plan_of(sparse_mlp(np.full(32, 3), 50), "gathered")
    assert first_layer(plan)["mul_plain"] == 1 and first_layer(plan)["rotate"] == 2, "four steps lie in one ciphertext"


@pytest.mark.parametrize(
    "backend", [pytest.param(n, marks=[pytest.mark.pyfhel] if n == "pyfhel" else []) for n in sorted(BACKENDS)]
)
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_a_backend_runs_what_was_planned(kind: str, backend: str) -> None:
    if kind == "dense":
        b = sparse_mlp(np.full(128, 47))
    else:
        b = Builder((1, 12, 12))
        shape = b.conv((1, 12, 12), 4, 3, 2, 1)
        b.quadratic(shape)
        b.add("reshape", (144,))
        b.dense(144, 10)
    plan = plan_of(b, "gathered")
    spec, secret = ClientSpec.parse(plan.client_spec().to_json()), SecretKey.generate(plan.params)
    executor = Executor(plan, backend)
    records = {r.element: r for r in secret.make_keys(spec.keys)}
    keys = executor.load_keys(EvaluationKeys(plan.params.digest, records))
    samples = b.inputs(1, seed=3)
    sent = [secret.encrypt(slots, spec.input.level, spec.input.scale) for slots in spec.input.pack(samples)]
    answer = executor.run(sent, keys)
    assert executor.counters == plan.counts_on(backend)
    got = spec.output.unpack(np.stack([secret.decrypt(ciphertext) for ciphertext in answer]))
    error = np.abs(got - run_clear(plan, samples))
    assert error.max() <= plan.error_bound and np.sqrt((error**2).mean()) <= 3 * plan.sigma


def test_the_planner_gathers_where_that_is_cheaper() -> None:
    b = sparse_mlp(np.full(128, 47))
    free, forced, without = plan_of(b), plan_of(b, "gathered"), plan_of(b, *OTHERS)
    assert free.digest == forced.digest != without.digest
    assert price(free, TENSEAL).latency_ms < 0.9 * price(without, TENSEAL).latency_ms
    assert len(without.inputs[0].values) == 1 and len(free.inputs[0].values) == 2


def test_the_planner_does_not_gather_where_it_is_not() -> None:
    b = NETWORKS["mlp"]()
    assert plan_of(b).digest == plan_of(b, *OTHERS).digest, "64 staggered copies take one product too"


def test_a_small_gain_is_not_worth_a_gather() -> None:
    b = NETWORKS["cnn"]()
    free, forced, without = plan_of(b), plan_of(b, "gathered"), plan_of(b, *OTHERS)
    ratio = price(forced, TENSEAL).latency_ms / price(without, TENSEAL).latency_ms
    assert 0.9 < ratio < 1.0 and free.digest == without.digest


def test_each_packing_can_be_forced() -> None:
    b = NETWORKS["cnn"]()
    plans = [plan_of(b, packing) for packing in (*OTHERS, "gathered")]
    assert len({plan.digest for plan in plans}) == 4
    for plan in plans:
        assert_equals_graph(b, b.calibrated(), plan)


def test_what_cannot_be_gathered_is_refused() -> None:
    b = Builder((32,))
    b.square((32,))
    b.dense(32, 4)
    with pytest.raises(DoesNotFit, match="gathered"):
        plan_of(b, "gathered")
    with pytest.raises(ParameterError, match="scattered"):
        plan_of(b, "scattered")
    with pytest.raises(ParameterError):
        compile(b.calibrated(), input_packings=())


def test_rows_alone_and_wide_gathers_are_left_to_other_packings() -> None:
    map_ = LinearMap(sp.csr_array(np.ones((8, 100))), np.zeros(8))
    assert gathered(map_, contiguous((8,), 64), 64) is not None, "13 ciphertexts"
    assert gathered(map_, contiguous((8,), 64), 12) is None
    assert gathered(map_, replace(contiguous((8,), 64), alone=(3,)), 64) is None
    assert gathered(map_, contiguous((8,), 1), 4096) is None


def test_inputs_that_nothing_reads_are_not_sent() -> None:
    b = sparse_mlp(np.full(4, 2), 9000)  # more inputs than slots
    plan = plan_of(b, "gathered")
    assert len(plan.inputs[0].values) == 1
    spec = ClientSpec.parse(plan.client_spec().to_json())
    np.testing.assert_array_equal(spec.input.slot_map, plan.inputs[0].slot_map)
    sent = np.unique(spec.input.slot_map[spec.input.slot_map >= 0])
    read = np.flatnonzero(b.arrays["dense0.weight"].any(axis=0))
    np.testing.assert_array_equal(sent, read)
    assert_equals_graph(b, b.calibrated(), plan)


def test_the_client_gets_the_zeros_but_no_weight() -> None:
    """Two models of one pattern have one slot map."""
    maps = []
    for factor in (1.0, -0.3):
        b = sparse_mlp(np.full(64, 20), 100)
        b.arrays["dense0.weight"] *= factor
        maps.append(plan_of(b, "gathered").client_spec().input.slot_map)
    np.testing.assert_array_equal(maps[0], maps[1])


def test_the_plan_says_what_it_reveals_and_uploads(tmp_path: Path) -> None:
    plan = plan_of(sparse_mlp(np.full(128, 47)))
    listing = Plan.load(plan.save(tmp_path)).listing()
    assert "784 inputs gathered by the client, 47 per output" in listing
    assert "it learns which inputs each output reads" in listing
    assert "in  x 784 in 2 ct" in listing
