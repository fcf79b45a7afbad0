"""Which ring a plan gets: the smallest that holds the budget, unless a larger one saves more ciphertexts than it costs."""

from __future__ import annotations

import numpy as np

from he_runtime import compile, price, run_clear
from he_runtime.cost import CostEntry, CostTable, load_default
from he_runtime.lower.input_layouts import INPUT_PACKINGS
from he_runtime.plan import LEAVES
from he_runtime.reference import forward
from tests.he_runtime.networks import wide
from tests.he_runtime.packing_checks import assert_equals_graph
from tests.he_runtime.test_gather import OTHERS, sparse_mlp


def table(growth: float) -> CostTable:
    """Every leaf takes a millisecond at N=4096 and `growth` times as much with every doubling of N."""
    entries = {
        (str(leaf), 4096 << k, level): CostEntry(1e-3 * growth**k, 0.0)
        for leaf in (*LEAVES, "upload", "download")
        for k in range(4)
        for level in range(4)
    }
    return CostTable("tenseal", 1, "a machine", {}, "2026-01-01T00:00:00+00:00", "measured", entries)


def test_a_larger_ring_is_taken_only_where_it_is_cheaper() -> None:
    b = wide()
    model = b.calibrated("wide")
    budget = 0.05 * max(map(abs, model.ranges[model.output.node]))
    dear = compile(model, max_error=budget, table=table(3.0))
    cheap = compile(model, max_error=budget, table=table(1.0))
    assert (dear.params.degree, len(dear.inputs[0].values)) == (4096, 2)
    assert (cheap.params.degree, len(cheap.inputs[0].values)) == (8192, 1)
    x = b.inputs(2)
    for plan in (dear, cheap):
        np.testing.assert_allclose(run_clear(plan, x), forward(model, x), atol=1e-9)


def test_a_ring_on_which_the_cheapest_packing_errs_too_much_may_hold_a_gathered_input() -> None:
    b, native = sparse_mlp(np.full(128, 200)), load_default("native")
    model = b.calibrated()
    plan, ungathered, small = (
        compile(model, max_error=budget, degrees=rings, table=native, input_packings=packings)
        for budget, rings, packings in (
            (0.5, (4096, 8192), INPUT_PACKINGS),
            (0.5, (4096, 8192), OTHERS),
            (10.0, (4096,), INPUT_PACKINGS),
        )
    )
    assert (ungathered.params.degree, small.error_bound > 0.5) == (8192, True)
    assert (len(small.inputs[0].values), len(plan.inputs[0].values)) == (1, 13), "there it is the dearer packing"
    assert plan.params.degree == 4096 and plan.error_bound <= 0.5
    assert price(plan, native).latency_ms < price(ungathered, native).latency_ms
    assert_equals_graph(b, model, plan)
