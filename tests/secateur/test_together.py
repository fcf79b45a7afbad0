"""Prices by operations timed in turn with a plan: of the plan's size on every kind of back end, fused stages included."""

from __future__ import annotations

import sys

import pytest

from he_runtime import compile
from he_runtime.cost import load_default
from he_runtime.errors import BackendUnavailable
from he_runtime.kernel import status
from model_prep.reference_models import random_reference
from secateur.kernel_threads import kernel_module, use_threads
from secateur.together import GroupTimer


@pytest.mark.parametrize("backend", ["tenseal", "native"])
def test_operations_in_turn_add_up_to_the_plan(backend: str) -> None:
    """Within a factor of three, on any machine that runs tests; a stage that counts as too few calls is beyond it."""
    if backend == "native" and not status().available:
        pytest.skip("the kernel is not built")
    plan = compile(random_reference("digits-mlp"), table=load_default(backend))
    (found,) = GroupTimer(backend, 3).records({"plan": plan}).values()
    assert 1 / 3 < found["ratio"] < 3 and found["counters_equal"]


def test_native_is_timed_on_one_thread() -> None:
    """However many it had, and has again afterwards; records say so."""
    if not status().available:
        pytest.skip("the kernel is not built")
    before = kernel_module().threads()
    seen: list[int] = []
    plan = compile(random_reference("digits-mlp"), table=load_default("native"))
    try:
        use_threads(2)
        GroupTimer("native", 1, lambda message: seen.append(kernel_module().threads())).records({"plan": plan})
        assert seen and set(seen) == {1}
        assert kernel_module().threads() == 2
    finally:
        use_threads(before)


def test_without_a_kernel_the_back_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback of an import: what cannot be timed is refused by the back end itself."""
    monkeypatch.setitem(sys.modules, "he_runtime.kernel._kernel", None)
    plan = compile(random_reference("digits-mlp"), table=load_default("native"))
    with pytest.raises(BackendUnavailable):
        GroupTimer("native", 1).records({"plan": plan})
