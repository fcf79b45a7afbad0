"""What may be zero together: structures as projections onto sets of masks, in NumPy only."""

from __future__ import annotations

from .balanced import Balanced, shift_classes
from .blocks import BlockRowsAndColumns
from .crossbars import Crossbars, crossbar_count, occupied_crossbars, packed_crossbars
from .gather import gather_cycles, peel
from .gather_storage import GatherStorage, decode_gather, encode_gather
from .kernel_patterns import KernelPatterns
from .kernel_storage import KernelStorage, decode_kernels, encode_kernels
from .layer import Bools, Floats, Ints, Layer, layers_of
from .library import PatternLibrary, default_entries, extract_library, random_library
from .partitions import BlockColumns, BlockRows, Channels, Columns, Diagonals, Kernels, Rows, Tiles, Weights
from .structure import Grouped, Structure, group_energy, group_norms, keep_strongest, kept_count

__all__ = [
    "Balanced",
    "BlockColumns",
    "BlockRows",
    "BlockRowsAndColumns",
    "Bools",
    "Channels",
    "Columns",
    "Crossbars",
    "Diagonals",
    "Floats",
    "GatherStorage",
    "Grouped",
    "Ints",
    "KernelPatterns",
    "KernelStorage",
    "Kernels",
    "Layer",
    "PatternLibrary",
    "Rows",
    "Structure",
    "Tiles",
    "Weights",
    "crossbar_count",
    "decode_gather",
    "decode_kernels",
    "default_entries",
    "encode_gather",
    "encode_kernels",
    "extract_library",
    "gather_cycles",
    "group_energy",
    "group_norms",
    "keep_strongest",
    "kept_count",
    "layers_of",
    "occupied_crossbars",
    "packed_crossbars",
    "peel",
    "random_library",
    "shift_classes",
]
