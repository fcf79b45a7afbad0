"""Layers of several tensors: products, concatenations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from he_runtime import Executor, Plan, compile, run_clear
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.cost import load_default
from he_runtime.errors import ModelError
from he_runtime.lower.levels import stage_levels
from he_runtime.lower.stages import build_stages
from he_runtime.model import CompressedModel
from he_runtime.plan.counts import leaf_totals
from he_runtime.reference import forward
from he_runtime.ring import EvaluationKeys
from tests.he_runtime.networks import Builder


def gated() -> Builder:
    """Both factors fresh from linear layers: one level, no plaintext product to align them."""
    b = Builder((24,))
    gate = b.dense(24, 16)
    b.last = "x"
    value = b.dense(24, 16)
    b.add("multiply", (16,), inputs=(gate, value))
    b.dense(16, 5)
    return b


def mixed_gate() -> Builder:
    """One factor at rest: a square, gated by a linear layer of the same input."""
    b = Builder((24,))
    b.dense(24, 16)
    kept = b.square((16,))
    b.last = "x"
    gate = b.dense(24, 16)
    b.add("multiply", (16,), inputs=(kept, gate))
    return b


def rest_gate() -> Builder:
    """Both factors at rest, and read twice: squares on different levels, and the product as output."""
    b = Builder((16,))
    b.dense(16, 16)
    first = b.square((16,))
    b.dense(16, 16)
    second = b.square((16,))
    product = b.add("multiply", (16,), inputs=(first, second))
    b.add("add", (16,), inputs=(product, second))
    return b


def shared_gate() -> Builder:
    """One linear layer that a square, a quadratic and a product on different levels read, unrescaled."""
    b = Builder((20,))
    shared = b.dense(20, 12)
    square = b.square((12,))
    b.last = shared
    general = b.quadratic((12,))
    both = b.add("add", (12,), inputs=(square, general))
    product = b.add("multiply", (12,), inputs=(both, shared))
    b.add("multiply", (12,), inputs=(shared, product))
    b.dense(12, 4)
    return b


def dense_block() -> Builder:
    """Channels added by concatenation, twice, as in a densely connected network; read by linear and by other layers."""
    b = Builder((2, 4, 4))
    first = b.conv((2, 4, 4), 3, 3, 1, 1)
    b.quadratic(first)
    grown = b.add("concat", (5, 4, 4), inputs=("x", b.last))
    second = b.conv((5, 4, 4), 2, 3, 1, 1)
    b.square(second)
    b.add("concat", (7, 4, 4), inputs=(grown, b.last))
    b.square((7, 4, 4))
    b.add("avg_pool2d", (7, 1, 1), {"kernel": [4, 4], "stride": [4, 4], "padding": [0, 0]})
    b.add("reshape", (7,))
    b.dense(7, 3)
    return b


def joined_output() -> Builder:
    """A concatenation as output: of a linear branch, a square and the input itself, one of them twice."""
    b = Builder((10,))
    branch = b.dense(10, 6)
    b.last = "x"
    b.dense(10, 5)
    square = b.square((5,))
    b.add("concat", (26,), inputs=("x", branch, square, square))
    return b


def attention() -> Builder:
    """Scores of one small linear attention, two heads: (q k^T) v, every factor from the same input."""
    b = Builder((24,))
    heads = []
    for _ in range(3):
        b.last = "x"
        b.dense(24, 24)
        b.arrays[f"{b.last}.weight"] *= 0.5
        heads.append(b.add("reshape", (2, 4, 3)))
    scores = b.add("matmul", (2, 4, 4), {"transpose_right": True}, inputs=heads[:2])
    b.add("matmul", (2, 4, 3), inputs=(scores, heads[2]))
    b.add("reshape", (24,))
    b.dense(24, 4)
    return b


def gram() -> Builder:
    """A matrix times its own transpose: both sides read the same tensor."""
    b = Builder((12,))
    b.dense(12, 12)
    b.add("reshape", (3, 4))
    b.add("matmul", (4, 4), {"transpose_left": True}, inputs=(b.last, b.last))
    return b


CASES: dict[str, Callable[[], Builder]] = {
    f.__name__: f for f in (gated, mixed_gate, rest_gate, shared_gate, dense_block, joined_output, attention, gram)
}


def planned(builder: Builder, name: str, batch: int = 1) -> tuple[CompressedModel, Plan]:
    model = builder.calibrated(name)
    largest = max(map(abs, model.ranges[model.output.node]))
    return model, compile(
        model, max_error=0.05 * largest, batch=batch, degrees=(8192, 16384), table=load_default("tenseal")
    )


def levels(model: CompressedModel) -> int:
    return max(stage_levels(build_stages(model, 4096)).values())


@pytest.mark.parametrize("batch", [1, 4, 4096])
@pytest.mark.parametrize("name", sorted(CASES))
def test_the_plan_computes_the_graph(name: str, batch: int) -> None:
    builder = CASES[name]()
    model, plan = planned(builder, name, batch)
    x = builder.inputs(5)
    expected = forward(model, x)
    np.testing.assert_allclose(run_clear(plan, x), expected, atol=1e-9 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("batch", [1, 4096])
@pytest.mark.parametrize("name", sorted(CASES))
def test_encrypted_equals_clear_within_the_predicted_error(name: str, batch: int) -> None:
    builder = CASES[name]()
    _, plan = planned(builder, name, batch)
    key, spec = SecretKey.generate(plan.params), plan.client_spec()
    executor = Executor(plan, "tenseal")
    loaded = executor.load_keys(EvaluationKeys(plan.params.digest, {r.element: r for r in key.make_keys(plan.keys)}))
    errors = []
    for samples in np.split(builder.inputs(4 if batch == 1 else 64), 4 if batch == 1 else 1):
        encrypted = [key.encrypt(slots, spec.input.level, spec.input.scale) for slots in spec.input.pack(samples)]
        result = executor.run(encrypted, loaded)
        assert executor.counters == plan.counts
        decrypted = spec.output.unpack(np.stack([key.decrypt(ct) for ct in result]), len(samples))
        errors.append(decrypted - run_clear(plan, samples))
    # Sigma is the mean over many samples; single ones of random networks lie off it (test_contract.py).
    assert float(np.abs(errors).max()) <= 1.5 * plan.error_bound
    assert 0.3 * plan.sigma <= float(np.sqrt(np.mean(np.square(errors)))) <= 2 * plan.sigma


def test_a_product_takes_one_level_one_relinearization_and_no_alignment() -> None:
    model, plan = planned(gated(), "gated")
    totals = leaf_totals(plan.counts)
    assert levels(model) == 1
    assert totals["mul"] == totals["relinearize"] == totals["rescale"] == 1
    transforms = [op for op in plan.ops if op.cells is not None]
    assert totals["mul_plain"] == sum(len(op.cells) for op in transforms)  # type: ignore[arg-type]


def test_a_concatenation_before_a_linear_layer_costs_nothing() -> None:
    """One transform over both tensors: the same diagonals as two layers, giant steps and rescale shared."""
    b = Builder((32,))
    left = b.dense(32, 16)
    left = b.square((16,))
    b.last = "x"
    b.dense(32, 16)
    right = b.square((16,))
    b.add("concat", (32,), inputs=(left, right))
    b.dense(32, 8)
    model, plan = planned(b, "joined")
    assert levels(model) == 1
    last = [op for op in plan.ops if op.cells is not None][-1]
    assert len(last.inputs) == 2 and len(last.outputs) == 1
    assert [s.name for s in build_stages(model, 4096)].count("concat4") == 0


def test_a_concatenation_of_single_ciphertexts_is_free() -> None:
    model, plan = planned(joined_output(), "joined", 4096)
    stages = {s.name: s for s in build_stages(model, 1)}
    assert type(stages[model.output.node]).__name__ == "JoinStage"
    assert not any(
        op.layer == model.output.node and op.kind.value not in ("mul_plain", "mod_switch") for op in plan.ops
    )


@pytest.mark.parametrize(
    ("op", "shapes", "output"),
    [
        ("add", [(4,), (5,)], (4,)),
        ("multiply", [(4,), (4, 1)], (4,)),
        ("multiply", [(4,), (4,)], (5,)),
        ("concat", [(2, 3, 3), (2, 3, 4)], (4, 3, 3)),
        ("concat", [(2, 3, 3), (1, 3, 3)], (4, 3, 3)),
        ("concat", [], (0,)),
        ("matmul", [(3, 4), (5, 4)], (3, 5)),
        ("matmul", [(2, 3, 4), (1, 4, 5)], (2, 3, 5)),
        ("matmul", [(6,), (6,)], (1,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(op: str, shapes: list[tuple[int, ...]], output: tuple[int, ...]) -> None:
    b = Builder((60,))
    names = [b.add("reshape", shape, inputs=("x",)) for shape in shapes]
    b.add(op, output, inputs=names or None)
    if op == "concat" and not shapes:
        b.nodes[-1] = b.nodes[-1].__class__("concat0", "concat", (), (0,))
    with pytest.raises(ModelError, match="cannot use node"):
        b.calibrated()
