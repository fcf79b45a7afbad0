"""Cost tables and prices. Nothing here needs an HE library, except `calibrate` and `ship`, which make keys and are
therefore imported by name only, never from here: a server must not reach the secret side through this package."""

from __future__ import annotations

from .entry import CostEntry
from .environment import Environment
from .keys import KeyCost
from .price import CostReport, LayerCost, price
from .table import CostTable, load_default

__all__ = ["CostEntry", "CostReport", "CostTable", "Environment", "KeyCost", "LayerCost", "load_default", "price"]
