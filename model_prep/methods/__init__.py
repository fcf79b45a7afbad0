"""The compression methods, one module each, on the structures and cores that they share.

method       what a method is, and the registry
quadratics   activations to learned quadratics
polynomials  activations to polynomials of chosen degrees, or to nothing
magnitude    the largest weights of the whole network
trace        whole channels, cut out of the network
diagonals    whole generalized diagonals of the packing
gather_scatter    balanced patterns, gathered by the client; hidden layers: cyclic shifts
block_lasso       pieces of rows or columns inside blocks, or whole blocks
block_reweighted  rows and columns inside each block
integers     symmetric integer weights, trained straight through
"""

from __future__ import annotations

from .block_lasso import ReweightedBlocks
from .block_reweighted import BlockRowsColumns
from .diagonals import DiagonalClasses
from .gather_scatter import GatherScatter
from .integers import IntegerWeights
from .magnitude import GlobalMagnitude
from .method import METHODS, Card, Method, method_from, register, table_of
from .polynomials import ChosenDegrees
from .quadratics import Quadratics
from .trace import TracePruning

__all__ = [
    "METHODS",
    "BlockRowsColumns",
    "Card",
    "ChosenDegrees",
    "DiagonalClasses",
    "GatherScatter",
    "GlobalMagnitude",
    "IntegerWeights",
    "Method",
    "Quadratics",
    "ReweightedBlocks",
    "TracePruning",
    "method_from",
    "register",
    "table_of",
]
