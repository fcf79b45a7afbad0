"""Sums of products by constants, all at once: the variances that one cell after the other gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from he_runtime import compile
from he_runtime.noise_sums import ConstantOperands
from tests.he_runtime.networks import mlp


def test_all_cells_at_once_err_as_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model, of = mlp().calibrated(), ConstantOperands.of
    used: list[ConstantOperands | None] = []

    def seen(*wish: Any) -> ConstantOperands | None:
        used.append(of(*wish))
        return used[-1]

    monkeypatch.setattr(ConstantOperands, "of", seen)
    at_once = compile(model, degrees=(8192,), batch=4096, max_error=1.0)
    assert used and all(found is not None for found in used)
    monkeypatch.setattr(ConstantOperands, "of", lambda *_: None)
    in_turn = compile(model, degrees=(8192,), batch=4096, max_error=1.0)
    assert at_once.params == in_turn.params
    np.testing.assert_allclose((at_once.sigma, at_once.error_bound), (in_turn.sigma, in_turn.error_bound), rtol=1e-9)
