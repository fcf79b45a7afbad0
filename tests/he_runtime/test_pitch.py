"""Pitched copies: the same sums from fewer products and rotations, and partial sums that nobody reads."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from he_runtime import Plan, compile, run_clear
from he_runtime.candidate import Problem, assemble
from he_runtime.compile import lower
from he_runtime.cost import load_default
from he_runtime.errors import DoesNotFit
from he_runtime.gadget_choice import choices
from he_runtime.layout import contiguous, image
from he_runtime.lower.diagonals import PackedLinear, fill, pack
from he_runtime.lower.groups import Groups
from he_runtime.lower.maps import LinearMap
from he_runtime.lower.partial_sums import contents, slot_peaks
from he_runtime.lower.pitch import PitchedLayout, pitched, pitches, read_set, write_set
from he_runtime.lower.program import Scales
from he_runtime.lower.stages import build_stages
from he_runtime.lower.statistics import Statistics
from he_runtime.model import CompressedModel
from he_runtime.plan.counts import layer_counts, leaf_totals
from he_runtime.reference import calibrate, forward
from tests.he_runtime.networks import Builder, cnn, mlp
from tests.he_runtime.packing_checks import assert_equals_graph, encrypted_error, packed

Floats = npt.NDArray[np.float64]
TENSEAL = load_default("tenseal")


def matrix(rows: int, columns: int, density: float, rng: np.random.Generator) -> LinearMap:
    weight = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < density)
    weight[0, 0] = 1.0
    return LinearMap(sp.csr_array(weight), rng.normal(size=rows)).without_zeros()


def deep(*sizes: int, seed: int = 0) -> Builder:
    """Dense layers of these sizes with squares between."""
    b = Builder(sizes[:1], seed)
    for k in range(len(sizes) - 1):
        if k:
            b.square(sizes[k : k + 1])
        b.dense(sizes[k], sizes[k + 1])
    return b


def planned(model: CompressedModel, **wish: object) -> Plan:
    budget = 0.05 * max(map(abs, model.ranges[model.output.node]))
    return compile(model, table=TENSEAL, **({"max_error": budget} | wish))  # type: ignore[arg-type]


def copies_of(plan: Plan) -> dict[str, str]:
    return {layer.name: layer.layout for layer in plan.layers if "copies" in layer.layout}


# The packing of one layer


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(1, 60)),
    density=st.sampled_from([0.05, 0.4, 1.0]),
    which=st.integers(0, 20),
    wide=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 2**16),
)
def test_copies_compute_both_matrix_products(
    sizes: tuple[int, int, int], density: float, which: int, wide: int, seed: int
) -> None:
    """The layer that makes copies, and the layer that reads them; outputs of the second fill every slot, or are zero."""
    rng, slots = np.random.default_rng(seed), 1024
    source, base, target = (contiguous((n,), slots) for n in sizes)
    target = replace(target, padded=wide * target.period)
    found = pitches(source, base)
    assume(found)
    middle = found[which % len(found)]
    first, second = matrix(sizes[1], sizes[0], density, rng), matrix(sizes[2], sizes[1], density, rng)
    x = rng.normal(size=sizes[0])
    hidden = contents(pack(first, middle, write_set(first, source, middle)), np.append(x, 0.0)[source.slot_map])
    expected = first.matrix @ x + first.bias
    np.testing.assert_allclose(hidden[middle.slot_map >= 0], np.tile(expected, middle.copies), atol=1e-9)
    packed_second = pack(second, target, read_set(second, middle, target))
    made = contents(periodic(packed_second, slots), hidden)
    np.testing.assert_allclose(
        made[0], np.append(second.matrix @ expected + second.bias, 0.0)[target.slot_map[0]], atol=1e-8
    )


def periodic(packed_layer: PackedLinear, slots: int) -> PackedLinear:
    """The bias in every period."""
    return replace(packed_layer, bias=np.resize(packed_layer.bias, (1, slots)))


@pytest.mark.parametrize(("slots", "lanes", "step"), [(4096, 16, 8), (8192, 32, 4), (16384, 64, 2)])
def test_a_dense_layer_takes_a_product_per_step_between_lanes(slots: int, lanes: int, step: int) -> None:
    """128x128: lanes of 128 + step slots, as many as there is room for; 128 / lanes products, step - 1 babies at most."""
    size = 128
    plain = contiguous((size,), slots)
    dense = matrix(size, size, 1.0, np.random.default_rng(0))
    most = max(pitches(plain, plain), key=lambda x: size // math.gcd(size, x.pitch))
    assert most.pitch == size + step and lanes * most.pitch <= slots < 2 * lanes * most.pitch
    found = write_set(dense, plain, most)
    assert found.products == size // lanes == step
    assert found.folds == tuple(most.pitch * lanes >> k for k in range(1, lanes.bit_length()))
    assert found.split.rotations <= step - 1 and found.rotations <= step - 1 + math.log2(lanes)
    last = matrix(16, size, 1.0, np.random.default_rng(1))
    after = read_set(last, most, contiguous((16,), slots))
    assert after.products == min(16, step), "16 diagonals, a pitch apart from copy to copy"
    assert after.folds == tuple(slots >> k for k in range(1, (slots // 16).bit_length()))


def test_copies_lie_where_sums_are_complete() -> None:
    layout = pitched(contiguous((5,), 64), 6, 4)
    assert layout is not None and layout.copies == (64 - 5) // 6 + 2 - 4 == 7
    slot_map = np.full((7, 6), -1)
    slot_map[:, :5] = np.arange(5)
    assert layout.slot_map[0].tolist() == [*slot_map.ravel(), *[-1] * (64 - 42)]
    assert layout.period == layout.span == 64 and layout.ciphertexts == 1
    like = np.full((10, 6), -1)
    like[:, :5] = np.arange(5)
    assert layout.likeness[0].tolist() == [*like.ravel(), *[-1] * 4], "partial sums up to the last whole lane"
    assert layout.spread(np.full(5, 3.0)).tolist() == [[3.0] * 64], "a constant needs no gaps"
    assert "7 copies 6 apart" in layout.describe()
    assert pitched(contiguous((5,), 64), 6, 16) is None, "no sum of 16 lanes would be complete"
    assert pitched(contiguous((5,), 64), 4, 4) is None, "copies would overlap"


def test_nothing_is_pitched_without_copies_of_the_input() -> None:
    assert pitches(contiguous((600,), 1024), contiguous((10,), 1024)) == []
    assert pitches(contiguous((16,), 1024), contiguous((1025,), 1024)) == []
    assert pitches(replace(contiguous((16,), 64), alone=(3,)), contiguous((16,), 64)) == []


# Plans


def test_a_hidden_layer_is_planned_in_copies() -> None:
    model = deep(32, 128, 128, 10).calibrated()
    plan, plain = planned(model, degrees=(8192,)), planned(model, degrees=(8192,), pitched=False)
    second, third = (leaf_totals(layer_counts(plan)[model.nodes[k].name]) for k in (2, 4))
    assert (second["mul_plain"], second["rotate"]) == (8, 8), "8 products; 2 + 2 turn them, log2(16) fold"
    assert third["mul_plain"] == 8
    before = leaf_totals(layer_counts(plain)[model.nodes[2].name])
    assert (before["mul_plain"], before["rotate"]) == (128, 21)
    assert not copies_of(plain) and set(copies_of(plan)) == {model.nodes[k].name for k in (2, 3)}


@pytest.mark.parametrize("backend", ["tenseal", "native"])
@pytest.mark.parametrize("sizes", [(32, 128, 128, 10), (16, 48, 33, 40, 7), (64, 20, 100, 3)], ids=str)
def test_copies_compute_the_graph_also_encrypted(backend: str, sizes: tuple[int, ...]) -> None:
    builder = deep(*sizes)
    model = builder.calibrated()
    plan = planned(model, degrees=(16384,))
    assert copies_of(plan)
    assert_equals_graph(builder, model, plan)
    assert encrypted_error(builder, plan, backend).max() <= plan.error_bound


def test_a_convolution_may_make_copies() -> None:
    b = cnn(channels=4)
    model = b.calibrated()
    plan = planned(model)
    assert any("plane" in layout for layout in copies_of(plan).values())
    assert_equals_graph(b, model, plan)
    assert encrypted_error(b, plan).max() <= plan.error_bound


def test_a_batch_has_copies_of_its_own() -> None:
    builder = deep(16, 32, 32, 4)
    model = builder.calibrated()
    plan = planned(model, batch=4, degrees=(8192,))
    assert copies_of(plan)
    x = builder.inputs(4)
    np.testing.assert_allclose(run_clear(plan, x), forward(model, x), atol=1e-9)


def test_clients_see_no_partial_sums() -> None:
    """Every slot of the answer is an output or zero, apart from the error."""
    builder = deep(32, 128, 128, 10)
    plan = planned(builder.calibrated())
    assert copies_of(plan)
    packing = lower(builder.calibrated(), plan.params.degree, 1, TENSEAL)[0].packing
    (last,) = (x for name, x in packing.layouts.items() if name == builder.last)
    assert not isinstance(last, PitchedLayout)
    whole = replace(plan, outputs=(replace(plan.outputs[0], slot_map=last.slot_map),))
    every = np.arange(plan.params.slots, dtype=np.int32)[None]
    raw = replace(plan, outputs=(replace(plan.outputs[0], shape=(plan.params.slots,), slot_map=every),))
    x = builder.inputs(2)
    found = np.append(run_clear(whole, x), np.zeros((2, 1)), axis=1)[:, last.slot_map[0]]
    np.testing.assert_allclose(run_clear(raw, x), found, atol=1e-9)


def test_only_squares_between_linear_layers_are_in_copies() -> None:
    def suits(builder: Builder) -> set[str]:
        model = builder.calibrated()
        stages = build_stages(model, 2048)
        return {s.name for s in Groups(stages, model.input.name, model.input.shape).pitchable.values()}

    square = deep(16, 32, 32, 8)
    assert suits(square) == {square.nodes[0].name, square.nodes[2].name}, "all but the output"
    cubic = Builder((16,))
    cubic.dense(16, 32)
    cubic.add("polynomial", (32,), {"basis": "chebyshev", "low": -4.0, "high": 4.0}, coefficients=[0.1, 0.5, 0.2, 0.1])
    cubic.dense(32, 8)
    assert suits(cubic) == set(), "a cubic of a partial sum may be anything"
    residual = Builder((16,))
    kept = residual.dense(16, 32)
    residual.square((32,))
    inner = residual.dense(32, 32)
    residual.add("add", (32,), inputs=(inner, kept))
    residual.dense(32, 8)
    assert suits(residual) == set(), "two layers make one layout"


# Partial sums


def problem_of(model: CompressedModel, degree: int = 8192) -> Problem:
    program, depth = lower(model, degree, 1, TENSEAL)
    return Problem(model, program, degree, depth, 1.0)


def test_peaks_are_what_a_clear_run_finds_in_all_slots() -> None:
    builder = deep(16, 64, 64, 4)
    model = calibrate(builder.calibrated(), builder.inputs(8))
    problem = problem_of(model)
    peaks = problem.slot_peaks
    assert set(peaks) == {n.name for n in model.nodes[2:4]}
    packing, x = problem.program.packing, problem.statistics.samples
    hidden = x[model.nodes[1].name]
    slots = np.append(hidden, np.zeros((len(hidden), 1)), axis=1)[:, packing.layouts[model.nodes[1].name].slot_map[0]]
    found = contents(packing.packed[model.nodes[2].name], slots)
    assert peaks[model.nodes[2].name] == pytest.approx(1.25 * np.abs(found).max())
    assert peaks[model.nodes[3].name] == pytest.approx(1.25 * np.abs(found).max() ** 2)


def test_without_samples_peaks_are_bounded() -> None:
    builder = deep(16, 64, 64, 4)
    model = builder.calibrated()
    seen = problem_of(calibrate(model, builder.inputs(64)))
    blind = Statistics(model.with_(arrays={k: v for k, v in model.arrays.items() if "samples" not in k}), ())
    assert not blind.samples
    bounds = slot_peaks(seen.program, replace(blind, stages=tuple(seen.program.stages)))
    assert all(bounds[name] > peak / 1.25 for name, peak in seen.slot_peaks.items())


def test_large_partial_sums_get_room() -> None:
    """Weights that cancel: partial sums many times as large as outputs, which must not wrap around."""
    builder = deep(16, 64, 64, 4)
    first, second = (builder.nodes[k].name for k in (0, 2))
    for role in ("weight", "bias"):  # both halves alike, so that large weights of the second layer cancel
        rows = builder.arrays[f"{first}.{role}"]
        rows[32:] = rows[:32]
    builder.arrays[f"{second}.weight"] += np.repeat([2.0, -2.0], 32)
    model = calibrate(builder.calibrated(), builder.inputs(8))
    problem = problem_of(model)
    assert problem.slot_peaks[second] > 4 * max(abs(v) for v in model.ranges[second])
    plan = planned(model, degrees=(16384,))
    assert copies_of(plan)
    assert encrypted_error(builder, plan).max() <= plan.error_bound
    problem.peaks[second] = 1e30
    with pytest.raises(DoesNotFit, match=f"layer '{second}'"):
        assemble(problem, plan.params, Scales(2.0**30, 2.0**20))


def test_what_needs_less_rounding_is_planned_without_copies() -> None:
    model = mlp().calibrated()
    problem = problem_of(model)
    assert any(isinstance(x, PitchedLayout) for x in problem.program.packing.layouts.values())
    plain = problem.plain()
    assert plain is not None and plain.plain() is None and not plain.slot_peaks
    (first, copies), (second, none) = choices(problem, TENSEAL)
    assert first < second and copies.program is problem.program and none.program.packing is plain.program.packing
    tight = min(planned(model, pitched=p).error_bound for p in (True, False))
    assert not copies_of(compile(model, table=TENSEAL, degrees=(8192,), max_error=1.01 * tight))


def test_the_same_split_fills_another_matrix() -> None:
    """What hides the structure (he_runtime/disclosure) puts real weights where the stand-in's were."""
    rng, plain = np.random.default_rng(0), contiguous((32,), 1024)
    drawn, real = matrix(32, 32, 1.0, rng), matrix(32, 32, 1.0, rng)
    middle = pitches(plain, plain)[0]
    found = pack(drawn, middle, write_set(drawn, plain, middle))
    again, whole = fill(real, middle, found.diagonals, found.split), pack(real, middle, write_set(real, plain, middle))
    assert np.array_equal(again.vectors, whole.vectors)


def test_images_have_copies_too() -> None:
    layout = image((2, 3, 3), 256, (6, 6), 2, 36)
    found = pitched(layout, 40, 4)
    assert found is not None
    assert (found.slot_map[0, 40 : 40 + found.extent] == found.slot_map[0, : found.extent]).all()


def test_packings_without_copies_can_be_asked_for() -> None:
    model = deep(16, 32, 32, 4).calibrated()
    assert any(isinstance(x, PitchedLayout) for x in packed(model, pitched=True).layouts.values())
    assert not any(isinstance(x, PitchedLayout) for x in packed(model).layouts.values())
