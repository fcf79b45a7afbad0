"""A network's packing without its plan, and what every plan must hold: the graph's values, and its error bound encrypted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from he_runtime import Executor, Plan, run_clear
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.cost import CostTable, load_default
from he_runtime.lower.costs import Costs
from he_runtime.lower.levels import stage_levels
from he_runtime.lower.packing import Packing, choose_packing
from he_runtime.lower.stages import build_stages
from he_runtime.model import CompressedModel
from he_runtime.reference import forward
from he_runtime.ring import EvaluationKeys
from tests.he_runtime.networks import Builder

__all__ = ["SLOTS", "assert_equals_graph", "encrypted_error", "packed"]

SLOTS = 2048


def packed(
    model: CompressedModel, slots: int = SLOTS, table: CostTable | None = None, *, pitched: bool = False
) -> Packing:
    stages = build_stages(model, slots)
    costs = Costs(table or load_default("tenseal"), 2 * slots)
    source, levels = model.input, stage_levels(stages)
    return choose_packing(stages, source.name, source.shape, slots, levels, costs, 64, pitched=pitched)


def encrypted_error(builder: Builder, plan: Plan, backend: str = "tenseal") -> npt.NDArray[np.float64]:
    """The absolute errors of one encrypted query against the same plan on clear slots."""
    secret, spec = SecretKey.generate(plan.params), plan.client_spec()
    executor = Executor(plan, backend)
    records = {r.element: r for r in secret.make_keys(plan.keys)}
    keys = executor.load_keys(EvaluationKeys(plan.params.digest, records))
    samples = builder.inputs(1, seed=3)
    sent = [secret.encrypt(slots, spec.input.level, spec.input.scale) for slots in spec.input.pack(samples)]
    answer = executor.run(sent, keys)
    assert executor.counters == plan.counts_on(backend)
    got = spec.output.unpack(np.stack([secret.decrypt(ciphertext) for ciphertext in answer]))
    return np.asarray(np.abs(got - run_clear(plan, samples))[0])


def assert_equals_graph(builder: Builder, model: CompressedModel, plan: Plan) -> None:
    inputs = builder.inputs(5)
    expected = forward(model, inputs)
    np.testing.assert_allclose(run_clear(plan, inputs), expected, atol=1e-9 * max(1.0, float(np.abs(expected).max())))
