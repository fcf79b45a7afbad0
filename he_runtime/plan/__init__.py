"""The plan: ops, types, operands, border; verified, counted, listed and stored."""

from .ops import LEAVES, Kind, Op, Plaintext, ValueType
from .plan import SHAPE, STRUCTURE, LayerInfo, Plan, Port
from .verify import verify

__all__ = [
    "LEAVES",
    "SHAPE",
    "STRUCTURE",
    "Kind",
    "LayerInfo",
    "Op",
    "Plaintext",
    "Plan",
    "Port",
    "ValueType",
    "verify",
]
