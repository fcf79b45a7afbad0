"""Cost tables and prices. Nothing here needs an HE library, except `calibrate` and `ship`, which make keys and are
therefore imported by name only, never from here: a server must not reach the secret side through this package."""

from __future__ import annotations

from .price import CostReport, LayerCost, price
from .table import CostEntry, CostTable, load_default

__all__ = ["CostEntry", "CostReport", "CostTable", "LayerCost", "load_default", "price"]
