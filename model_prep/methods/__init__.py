"""The compression methods, one module each, on the structures and cores that they share.

method       what a method is, and the registry
quadratics   activations to learned quadratics
magnitude    the largest weights of the whole network
trace        whole channels, cut out of the network
diagonals    whole generalized diagonals of the packing
integers     symmetric integer weights, trained straight through
"""

from __future__ import annotations

from .diagonals import DiagonalClasses
from .integers import IntegerWeights
from .magnitude import GlobalMagnitude
from .method import METHODS, Card, Method, method_from, register, table_of
from .quadratics import Quadratics
from .trace import TracePruning

__all__ = [
    "METHODS",
    "Card",
    "DiagonalClasses",
    "GlobalMagnitude",
    "IntegerWeights",
    "Method",
    "Quadratics",
    "TracePruning",
    "method_from",
    "register",
    "table_of",
]
