"""Seeds are hashed alike on every path, and as NumPy does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from he_runtime.wire import expansion


def test_nodes_go_where_they_should_or_nowhere(kernel: Any) -> None:
    root = np.zeros(8, np.uint64)
    for out in (np.zeros(512), np.zeros(511, np.uint64), np.zeros(1024, np.uint64)[::2]):
        with pytest.raises((ValueError, TypeError)):
            kernel.blake2xb_nodes(out, root, "portable")
    both = np.zeros(512, np.uint64)
    for out, roots, path in ((both, both[:8], "portable"), (both, root[:7], "portable"), (both, root, "abacus")):
        with pytest.raises(ValueError):
            kernel.blake2xb_nodes(out, roots, path)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 5), st.integers(0, 2**32))
def test_every_path_hashes_the_same_nodes(kernel: Any, count: int, salt: int) -> None:
    """As NumPy does, which agrees with SEAL (tests/he_runtime/test_seal_bridge.py)."""
    roots = np.random.default_rng(salt).integers(0, 2**64, 8 * count, dtype=np.uint64)
    expected = expansion._nodes(roots.reshape(count, 8))
    for path in kernel.paths():
        out = np.zeros(512 * count, np.uint64)
        kernel.blake2xb_nodes(out, roots, path)
        assert np.array_equal(out, expected), path
