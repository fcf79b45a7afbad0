"""The plan: ops, types, operands, border; verified, counted, listed and stored."""

from .ops import LEAVES, Kind, Op, Plaintext, ValueType
from .plan import LayerInfo, Plan, Port
from .verify import verify

__all__ = ["LEAVES", "Kind", "LayerInfo", "Op", "Plaintext", "Plan", "Port", "ValueType", "verify"]
