"""What every test shares: the `pyfhel` marker skips without Pyfhel, or fails where Pyfhel is required (CI)."""

from __future__ import annotations

import importlib.util
import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("SECATEUR_REQUIRE_PYFHEL") == "1" or importlib.util.find_spec("Pyfhel") is not None:
        return  # where it is required and missing, the test itself fails with the way to install it
    skip = pytest.mark.skip(reason="Pyfhel is not installed; try `make pyfhel`")
    for item in items:
        if item.get_closest_marker("pyfhel") is not None:
            item.add_marker(skip)
