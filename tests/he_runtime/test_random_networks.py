"""Random small networks of every layer: the plan on slots equals the graph, in every packing and under every split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from he_runtime import compile, run_clear
from he_runtime.cost import load_default
from he_runtime.errors import DoesNotFit
from he_runtime.lower.diagonals import DiagonalSet
from he_runtime.lower.split import Split
from he_runtime.model import OPS
from he_runtime.noise import slot_variance
from he_runtime.plan import Plan
from secateur.local import Local
from tests.he_runtime.networks import Builder
from tests.he_runtime.random_networks import RandomNetwork, planned

DEGREE = 1024  # a test ring: nothing is encrypted here, and small rings make several ciphertexts of small tensors
SETTINGS = settings(
    max_examples=180, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
SEEDS, LAYERS, BATCHES = st.integers(0, 2**32), st.integers(1, 12), st.sampled_from([1, 8, 64, DEGREE // 2])


def check(network: RandomNetwork, batch: int) -> Plan | None:
    """The plan, which must compute the graph to 1e-9 of the largest value on the way; None where the output is constant."""
    model = network.model()
    try:
        plan = planned(model, DEGREE, batch)
    except DoesNotFit as refused:
        assert "depends on no input" in refused.message
        return None
    largest = max(1.0, *(float(np.abs(v).max()) for v in network.values.values()))
    expected = network.values[model.output.node]
    np.testing.assert_allclose(run_clear(plan, network.samples), expected, rtol=0, atol=1e-9 * largest)
    return plan


def test_the_plan_computes_the_graph() -> None:
    """And what is drawn holds every op, inputs and outputs of several ciphertexts, and few constants."""
    ops: Counter[str] = Counter()
    seen: Counter[str] = Counter()

    @SETTINGS
    @given(seed=SEEDS, layers=LAYERS, batch=BATCHES)
    def every_network(seed: int, layers: int, batch: int) -> None:
        network = RandomNetwork(seed, layers)
        plan = check(network, batch)
        if plan is not None:
            ops.update(node.op for node in network.builder.nodes)
            wide = {side: len(ports[0].values) > 1 for side, ports in (("in", plan.inputs), ("out", plan.outputs))}
            seen.update(planned=1, **wide)

    every_network()
    assert set(ops) == set(OPS) and min(ops.values()) >= 10
    assert seen["planned"] >= 100 and min(seen["in"], seen["out"]) >= 10


def any_split(random: Random) -> Callable[[DiagonalSet, frozenset[int], float], Split]:
    """Stands in for the search: some modulus, some offset, and babies and giants moved against each other.

    What needs no rotation gets none, as from the search.
    """

    def split(found: DiagonalSet, _: frozenset[int], weight: float = 1.0) -> Split:
        outputs, inputs, diagonals = found.cells.T
        modulus, offset, moved = random.randint(1, 2 * found.modulus), *(random.randrange(2048) for _ in range(2))
        low = (diagonals + offset) % found.modulus % modulus
        baby = np.where(found.standing, 0, (low - moved) % found.modulus)
        giant = np.where(found.standing, 0, (diagonals - baby) % found.modulus)
        sides = (zip(inputs, baby, strict=True), zip(outputs, giant, strict=True))
        babies, giants = ({(int(ct), int(step)) for ct, step in side if step} for side in sides)
        steps = frozenset(step for _, step in babies | giants)
        return Split(baby, giant, len(babies), len(giants), len({ct for ct, _ in babies}), steps)

    return split


def test_every_split_computes_the_graph() -> None:
    splits: list[tuple[int, ...]] = []

    @SETTINGS
    @given(seed=SEEDS, layers=LAYERS, batch=BATCHES)
    def every_network(seed: int, layers: int, batch: int) -> None:
        with mock.patch.object(DiagonalSet, "best_split", any_split(Random(seed))):
            plan = check(RandomNetwork(seed, layers), batch)
        cells = [op.cells for op in plan.ops if op.cells is not None] if plan else []
        splits.extend(tuple(len(np.unique(c[:, k])) for k in (2, 3)) for c in cells)

    every_network()
    both = [s for s in splits if min(s) > 1]
    # Enough to mean something; how many exactly depends on the examples, which follow every constant in the tree.
    assert len(both) >= 30 and len(set(both)) >= 15


# (seed, batch) at 4096 slots: products, polynomials of degree 3 and 4, grouped convolutions, up to 40 input ciphertexts.
ENCRYPTED = [
    *((seed, 1) for seed in (78, 1722, 2679)),
    *((seed, 16) for seed in (703, 1993, 2863)),
    *((seed, 4096) for seed in (134, 722, 2369)),
]


def small(seed: int) -> RandomNetwork:
    return RandomNetwork(seed, 7, max_depth=4, calm=True, samples=64)


@pytest.mark.parametrize(("seed", "batch"), ENCRYPTED)
def test_encrypted_equals_clear_within_the_predicted_error(seed: int, batch: int) -> None:
    """On samples that calibration saw: sigma is their mean, and products of products have tails."""
    network = small(seed)
    model = network.calibrated("random")
    largest = max(map(abs, model.ranges[model.output.node]))
    plan = compile(model, degrees=(8192,), max_error=0.2 * largest, batch=batch, table=load_default("tenseal"))
    samples = network.samples[: max(4, min(batch, 32))]
    errors = encrypted_errors(plan, samples, batch)
    if (
        np.abs(errors).max() > plan.error_bound
    ):  # errors under one key go together: a bound that is wrong fails under two
        errors = encrypted_errors(plan, samples, batch)
    assert float(np.abs(errors).max()) <= plan.error_bound
    assert 0.3 * plan.sigma <= float(np.sqrt(np.mean(np.square(errors)))) <= 2 * plan.sigma


def encrypted_errors(plan: Plan, samples: np.ndarray, batch: int) -> np.ndarray:
    """Of every answer under a fresh key."""
    local, errors = Local(plan), []
    for chunk in np.split(samples, max(1, len(samples) // batch)):
        found = local.decrypt_batch(local.evaluate(local.encrypt_batch(chunk)), len(chunk))
        assert local.executor.counters == plan.counts_on(local.executor.backend.name)
        errors.append(found - run_clear(plan, chunk))
    return np.array(errors)


def test_every_op_is_among_the_encrypted() -> None:
    assert {node.op for seed, _ in ENCRYPTED for node in small(seed).builder.nodes} == set(OPS)


def test_a_constant_output_is_refused_for_what_it_is() -> None:
    """Not for a chain that no search can find."""
    b = Builder((6,))
    b.add("dense", (4,), weight=np.zeros((4, 6)), bias=np.ones(4))
    with pytest.raises(DoesNotFit, match=r"cannot lower layer 'dense0': an output depends on no input"):
        compile(b.calibrated(), max_error=1.0)


def test_the_error_of_a_tensor_added_to_itself_is_twice_its_own() -> None:
    """Not that of two independent tensors."""
    variances = []
    for twice in (False, True):
        b = Builder((8,))
        kept = b.dense(8, 8)
        if twice:
            b.add("add", (8,), inputs=(kept, kept))
        plan = planned(b.calibrated(), DEGREE, 1)
        known = {value: np.full(plan.lane_groups, 1 / 3) for value in plan.inputs[0].values}
        variances.append(slot_variance(plan, known).mean())
    assert variances[1] == pytest.approx(4 * variances[0])
