"""The stated bound follows the noisiest output, not the mean one."""

from __future__ import annotations

import pytest

from he_runtime import Plan, compile
from tests.he_runtime.networks import Builder


def planned(last_row: float) -> Plan:
    """16-16-8 with a square; the last output's weights are larger by a factor."""
    b = Builder((16,))
    b.dense(16, 16)
    b.square((16,))
    name = b.dense(16, 8)
    b.arrays[f"{name}.weight"][-1] *= last_row
    return compile(b.calibrated("rows"), degrees=(8192,), max_error=10.0)


def test_one_noisy_output_moves_the_bound_more_than_sigma() -> None:
    even, uneven = planned(1.0), planned(20.0)
    assert even.error_bound == pytest.approx(6 * even.worst_sigma)
    assert 1.0 <= even.worst_sigma / even.sigma < 1.5
    assert 2.0 < uneven.worst_sigma / uneven.sigma <= 8**0.5 + 1e-9, "one of eight outputs has nearly all of the error"
