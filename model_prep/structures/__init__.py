"""What may be zero together: structures as projections onto sets of masks, in NumPy only (methods.md, section 0.3)."""

from __future__ import annotations

from .blocks import BlockRowsAndColumns
from .crossbars import Crossbars, crossbar_count, occupied_crossbars, packed_crossbars
from .kernel_patterns import KernelPatterns
from .kernel_storage import KernelStorage, decode_kernels, encode_kernels
from .layer import Bools, Floats, Ints, Layer, layers_of
from .library import PatternLibrary, default_entries, extract_library, random_library
from .partitions import BlockColumns, BlockRows, Channels, Columns, Diagonals, Kernels, Rows, Tiles, Weights
from .structure import Grouped, Structure, group_energy, group_norms, keep_strongest, kept_count

__all__ = [
    "BlockColumns",
    "BlockRows",
    "BlockRowsAndColumns",
    "Bools",
    "Channels",
    "Columns",
    "Crossbars",
    "Diagonals",
    "Floats",
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
    "decode_kernels",
    "default_entries",
    "encode_kernels",
    "extract_library",
    "group_energy",
    "group_norms",
    "keep_strongest",
    "kept_count",
    "layers_of",
    "occupied_crossbars",
    "packed_crossbars",
    "random_library",
]
