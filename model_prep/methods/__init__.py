"""The compression methods, one module each, on the structures and cores that they share.

method       what a method is, and the registry
quadratics   activations to learned quadratics
polynomials  activations to polynomials of chosen degrees, or to nothing
magnitude    the largest weights of the whole network
trace        whole channels, cut out of the network
diagonals    whole generalized diagonals of the packing
diagrid      grids of baby and giant steps within a latency budget
gather_scatter    balanced patterns, gathered by the client; hidden layers: cyclic shifts
block_lasso       pieces of rows or columns inside blocks, or whole blocks
block_reweighted  rows and columns inside each block
patterns     patterns of taps in kernels, and whole kernels (module pattern)
unified      one reweighted penalty for seven structures, with a cap per layer
crossbars    crossbars of filters and columns, on levels of memristors (module crossbar)
integers     symmetric integer weights, trained straight through
progressive  ever sparser steps of ADMM
levels       ever fewer bits, down to signs (module binary)
"""

from __future__ import annotations

from .binary import Levels
from .block_lasso import ReweightedBlocks
from .block_reweighted import BlockRowsColumns
from .crossbar import CrossbarAdmm
from .diagonals import DiagonalClasses
from .diagrid import DiaGrid
from .gather_scatter import GatherScatter
from .integers import IntegerWeights
from .magnitude import GlobalMagnitude
from .method import METHODS, Card, Method, method_from, register, table_of
from .pattern import Patterns
from .polynomials import ChosenDegrees
from .progressive import ProgressiveAdmm
from .quadratics import Quadratics
from .trace import TracePruning
from .unified import Unified

__all__ = [
    "METHODS",
    "BlockRowsColumns",
    "Card",
    "ChosenDegrees",
    "CrossbarAdmm",
    "DiaGrid",
    "DiagonalClasses",
    "GatherScatter",
    "GlobalMagnitude",
    "IntegerWeights",
    "Levels",
    "Method",
    "Patterns",
    "ProgressiveAdmm",
    "Quadratics",
    "ReweightedBlocks",
    "TracePruning",
    "Unified",
    "method_from",
    "register",
    "table_of",
]
