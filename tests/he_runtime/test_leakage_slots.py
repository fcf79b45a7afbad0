"""What a reply holds besides the outputs: nothing. Every slot is an output's replica, or a number that no input changes.

Operands are zero wherever the layout has no element, so partial sums and other neurons' values never reach unused slots:
no mask and no level is spent on it. The unused slots of an encrypted reply hold its noise only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from he_runtime import Executor, Plan, compile
from he_runtime.backends.base import walk
from he_runtime.backends.clear import ClearEvaluator
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.cost import load_default
from he_runtime.errors import DoesNotFit
from he_runtime.plan import Kind, Port
from he_runtime.ring import EvaluationKeys
from tests.he_runtime.networks import Builder
from tests.he_runtime.random_networks import RandomNetwork, planned
from tests.he_runtime.test_outlier_rows import pruned

Floats = npt.NDArray[np.float64]
SETTINGS = settings(
    max_examples=70, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)


def reply(plan: Plan, samples: Floats) -> Floats:
    """Samples (batch, *shape) -> all slots of the reply, (ciphertexts, lane groups, batch)."""
    spec = plan.tensor_spec(plan.inputs[0])
    evaluator = ClearEvaluator(plan)
    results = walk(plan, evaluator, [evaluator.upload(row[None], spec.level) for row in spec.pack(samples)])
    return np.stack([r.slots[0] for r in results]).reshape(len(results), plan.lane_groups, plan.batch)


def kinds(plan: Plan, samples: Floats) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Of every slot, (runs,) of inputs apart: whether it always equals one output of its sample, and whether it never changes."""
    runs = [samples[k : k + 1].repeat(plan.batch, axis=0) for k in range(len(samples))]
    seen = np.stack([reply(plan, run) for run in runs])  # (runs, ciphertexts, lane groups, batch)
    output = plan.tensor_spec(plan.outputs[0])
    outputs = np.stack(
        [output.unpack(r.reshape(r.shape[0], -1), 1).ravel() for r in seen]
    )  # every lane holds the same sample
    near = 1e-9 * max(1.0, float(np.abs(seen).max()))
    flat = seen.reshape(len(runs), -1)
    equal = np.zeros(flat.shape[1], dtype=bool)
    for element in outputs.T:
        equal |= (np.abs(flat - element[:, None]) <= near).all(axis=0)
    still = np.asarray((np.abs(flat - flat[:1]) <= near).all(axis=0))
    return equal, still


def test_no_packing_leaves_anything_else_in_a_reply() -> None:
    """Random networks of every layer: folds, several ciphertexts, branches, batches, products and polynomials at the end."""
    seen: Counter[str] = Counter()

    @SETTINGS
    @given(seed=st.integers(0, 2**32), layers=st.integers(1, 10), batch=st.sampled_from([1, 8, 512]))
    def every_network(seed: int, layers: int, batch: int) -> None:
        network = RandomNetwork(seed, layers)
        try:
            plan = planned(network.model(), 1024, batch)
        except DoesNotFit:
            return
        equal, still = kinds(plan, network.samples)
        assert (equal | still).all()
        seen.update(planned=1, unused=int(not equal.all()), wide=int(len(plan.outputs[0].values) > 1))

    every_network()
    assert seen["planned"] >= 40 and min(seen["unused"], seen["wide"]) >= 5


def _inputs(builder: Builder, packing: str) -> Plan:
    model = builder.calibrated("net")
    return compile(model, max_error=1e3, input_packings=(packing,), table=load_default("tenseal"))


def _conv() -> Builder:
    b = Builder((1, 8, 8))
    shape = b.conv((1, 8, 8), 3, 3, 1, 0)
    b.square(shape)
    return b


def _rows(outputs: int = 12) -> Builder:
    b = Builder((100,))
    b.dense(100, outputs, density=0.2)
    return b


@pytest.mark.parametrize(
    ("packing", "builder"),
    [("plain", _rows()), ("staggered", _rows()), ("gathered", _rows()), ("windows", _conv())],
)
def test_every_way_to_pack_the_input(packing: str, builder: Builder) -> None:
    plan = _inputs(builder, packing)
    equal, still = kinds(plan, builder.inputs(3))
    assert (equal | still).all() and not equal.all()
    assert np.abs(reply(plan, builder.inputs(1))[~equal.reshape(-1, plan.lane_groups, 1)]).max() == 0.0


def test_rows_alone_fill_their_ciphertext() -> None:
    builder = pruned(64, (3, 40), last=True)
    plan = compile(builder.calibrated("net"), max_error=1e3, table=load_default("tenseal"))
    equal, still = kinds(plan, builder.inputs(3))
    assert (equal | still).all()


def test_an_encrypted_reply_holds_noise_in_its_unused_slots() -> None:
    """All slots are decrypted; those that hold no output are as near to zero as outputs are to theirs."""
    builder = _rows()
    plan = compile(builder.calibrated("net"), max_error=0.5, table=load_default("tenseal"))
    secret, spec = SecretKey.generate(plan.params), plan.client_spec()
    executor = Executor(plan, "tenseal")
    keys = executor.load_keys(EvaluationKeys(plan.params.digest, {r.element: r for r in secret.make_keys(plan.keys)}))
    x = builder.inputs(4)
    equal, _ = kinds(plan, x)
    unused = ~equal
    assert unused.sum() >= 256
    squares = []
    for sample in x:
        sent = [secret.encrypt(row, spec.input.level, spec.input.scale) for row in spec.input.pack(sample[None])]
        slots = np.concatenate([secret.decrypt(ct) for ct in executor.run(sent, keys)])
        assert np.abs(slots - reply(plan, sample[None]).ravel()).mean() < plan.error_bound
        squares.append(slots[unused] ** 2)
    # Key switching is up to a hundred times louder in the few slots next to the root 1; the median does not see them.
    assert 0 < np.sqrt(np.median(np.concatenate(squares))) < plan.error_bound


def test_a_plan_that_left_a_partial_sum_would_be_found() -> None:
    """The check above can fail: without its folds a reply holds parts of sums."""
    builder = _rows()
    plan = compile(builder.calibrated("net"), max_error=1e3, input_packings=("plain",), table=load_default("tenseal"))
    first = next(k for k, op in enumerate(plan.ops) if op.kind is Kind.LINEAR_TRANSFORM)
    early = Port(plan.outputs[0].name, plan.outputs[0].shape, plan.ops[first].outputs, plan.outputs[0].slot_map)
    equal, still = kinds(replace(plan, ops=plan.ops[: first + 1], outputs=(early,)), builder.inputs(3))
    assert not (equal | still).all()
