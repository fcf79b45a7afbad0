"""The library of kernel patterns: which few taps of a kernel may stay.

Ma et al., ECCV 2020, arXiv 2001.07710. Patterns are counted on a trained network: the largest entries of each
kernel, the centre always among them, and the most frequent patterns are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from he_runtime.errors import ModelError

from .layer import Bools, Floats, Ints

__all__ = ["PatternLibrary", "default_entries", "extract_library", "random_library"]

_ENTRIES = {9: 4, 25: 9}  # taps -> kept taps


def default_entries(kernel: tuple[int, int]) -> int:
    """Taps that a pattern keeps: 4 of 3x3, 9 of 5x5, about two in five of others, and the only one of 1x1."""
    taps = kernel[0] * kernel[1]
    return _ENTRIES.get(taps, max(1, round(0.4 * taps)))


@dataclass(frozen=True)
class PatternLibrary:
    """`patterns[(kh, kw)]` is (n, kh, kw), True where a tap stays; `counts[(kh, kw)]` is (n,), how often each was seen.

    All patterns of a size keep equally many taps; ModelError otherwise.
    """

    patterns: Mapping[tuple[int, int], Bools]
    counts: Mapping[tuple[int, int], Ints]

    def __post_init__(self) -> None:
        for (height, width), patterns in self.patterns.items():
            entries = patterns.sum(axis=(1, 2)) if patterns.shape[1:] == (height, width) else np.zeros(0)
            if not entries.size or not entries[0] or (entries != entries[0]).any():
                raise ModelError(
                    f"cannot use a library of {height}x{width} patterns of shape {patterns.shape}: need (n, {height}, "
                    f"{width}) with equally many entries in each, at least one"
                )

    def of(self, kernel: tuple[int, int]) -> Bools:
        """(n, kh, kw); ModelError where there are none for this size."""
        if kernel not in self.patterns:
            raise ModelError(
                f"cannot prune {kernel[0]}x{kernel[1]} kernels: the library has patterns of sizes "
                f"{sorted(self.patterns)}; try extract_library on this network's weights"
            )
        return self.patterns[kernel]

    def mass(self, kernel: tuple[int, int]) -> Floats:
        """(kh, kw): the share of kernels that keep each tap; it resembles a Laplacian of Gaussian in the paper."""
        counts = self.counts[kernel].astype(np.float64)
        return np.asarray(np.tensordot(counts / counts.sum(), self.of(kernel), axes=1), dtype=np.float64)


def extract_library(
    weights: Mapping[str, npt.NDArray[np.floating]], entries: int | None = None, size: int = 8, strongest: float = 1.0
) -> PatternLibrary:
    """The `size` most frequent patterns of each kernel size; fewer where fewer occur.

    `weights` may hold any arrays: convolutions (out, in, kh, kw) with more than one tap are counted, 1x1 and dense ones
    left alone. A pattern keeps `entries` taps, by default `default_entries`. Only the share `strongest` of the kernels,
    those of largest norm, votes; kernels of zeros never do. Ties fall to the pattern with the earlier taps.

    Raises ModelError where a kernel has fewer taps than `entries` or the settings are out of range.
    """
    if size < 1 or not 0 < strongest <= 1:
        raise ModelError(f"cannot extract a library: got size {size}, strongest {strongest:g}; need >= 1 and in 0..1")
    kernels: dict[tuple[int, int], list[Floats]] = {}
    for values in weights.values():
        if values.ndim == 4 and values.shape[2] * values.shape[3] > 1:
            shape = (int(values.shape[2]), int(values.shape[3]))
            kernels.setdefault(shape, []).append(np.abs(values, dtype=np.float64).reshape(-1, shape[0] * shape[1]))
    found = {shape: _frequent(np.concatenate(k), shape, entries, size, strongest) for shape, k in kernels.items()}
    return PatternLibrary({k: p for k, (p, _) in found.items()}, {k: c for k, (_, c) in found.items()})


def random_library(kernel: tuple[int, int], size: int = 8, entries: int | None = None, seed: int = 0) -> PatternLibrary:
    """`size` different patterns drawn at random, the centre kept: the control for an extracted library."""
    taps, count = kernel[0] * kernel[1], _checked_entries(kernel, entries)
    rng = np.random.default_rng(seed)
    scores = rng.random((64 * size, taps))
    different = np.unique(_largest(scores, kernel, count), axis=0)
    chosen = different[rng.permutation(len(different))[:size]]
    return PatternLibrary({kernel: chosen.reshape(-1, *kernel)}, {kernel: np.ones(len(chosen), dtype=np.int64)})


def _frequent(
    magnitudes: Floats, kernel: tuple[int, int], entries: int | None, size: int, strongest: float
) -> tuple[Bools, Ints]:
    norms = np.linalg.norm(magnitudes, axis=1)
    votes = np.argsort(-norms, kind="stable")[: max(1, round(strongest * len(norms)))]
    votes = votes[norms[votes] > 0]
    if not votes.size:
        raise ModelError(
            f"cannot extract patterns of {kernel[0]}x{kernel[1]}: all kernels are zero; try trained weights"
        )
    masks = _largest(magnitudes[votes], kernel, _checked_entries(kernel, entries))
    patterns, counts = np.unique(~masks, axis=0, return_counts=True)  # inverted: earlier taps come first
    order = np.argsort(-counts, kind="stable")[:size]
    return ~patterns[order].reshape(-1, *kernel), counts[order].astype(np.int64)


def _checked_entries(kernel: tuple[int, int], entries: int | None) -> int:
    count = default_entries(kernel) if entries is None else entries
    if not 1 <= count <= kernel[0] * kernel[1]:
        raise ModelError(
            f"cannot keep {count} entries of {kernel[0]}x{kernel[1]} kernels: need 1..{kernel[0] * kernel[1]}"
        )
    return count


def _largest(magnitudes: Floats, kernel: tuple[int, int], entries: int) -> Bools:
    """(kernels, taps): True at the centre and the entries - 1 largest others; ties to the earlier tap."""
    scores = magnitudes.copy()
    scores[:, kernel[0] // 2 * kernel[1] + kernel[1] // 2] = np.inf
    masks = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(masks, np.argsort(-scores, axis=1, kind="stable")[:, :entries], True, axis=1)
    return masks
