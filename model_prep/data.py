"""Data sets as NumPy arrays: scikit-learn's digits by default, MNIST from a directory, digits upscaled in its absence.

Every data set says by `name` which data it holds, and every accuracy that the project reports carries that name.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from he_runtime.errors import InputError, Reason
from he_runtime.model import InputSpec

__all__ = ["DATASETS", "Dataset", "digits_folds", "load"]

Float32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

SPLIT_SEED = 20240917
_MNIST_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
_IDX_UNSIGNED_BYTE = 0x08


@dataclass(frozen=True)
class Dataset:
    """Raw images (B, C, H, W) in [low, high], integer labels (B,), and the normalization to apply per channel."""

    name: str
    x_train: Float32
    y_train: Labels
    x_test: Float32
    y_test: Labels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...]
    low: float = 0.0
    high: float = 1.0

    @property
    def input_spec(self) -> InputSpec:
        """The model's input as a client sees it."""
        return InputSpec("image", self.x_train.shape[1:], self.mean, self.std, self.low, self.high)

    def normalized(self, split: str) -> Float32:
        """`x_train` or `x_test` after (x - mean) / std: what a network sees."""
        raw: Float32 = {"train": self.x_train, "test": self.x_test}[split]
        axes = (-1,) + (1,) * (raw.ndim - 2)
        mean, std = (np.asarray(v, dtype=np.float32).reshape(axes) for v in (self.mean, self.std))
        return np.ascontiguousarray((raw - mean) / std, dtype=np.float32)

    def subset(self, train: int, test: int) -> Dataset:
        """The first `train` and `test` samples, for quick runs; the name says so."""
        if train >= len(self.x_train) and test >= len(self.x_test):
            return self
        return replace(
            self,
            name=f"{self.name}[{min(train, len(self.x_train))}/{min(test, len(self.x_test))}]",
            x_train=self.x_train[:train],
            y_train=self.y_train[:train],
            x_test=self.x_test[:test],
            y_test=self.y_test[:test],
        )


def load(name: str, directory: Path | str | None = None) -> Dataset:
    """A data set by name ("digits" or "mnist"); `directory` (or SECATEUR_DATA) is where real data lie.

    Raises InputError on an unknown name, and on MNIST files that are there but malformed.
    """
    if name not in DATASETS:
        raise InputError(f"cannot load data {name!r}: need one of {sorted(DATASETS)}")
    root = directory if directory is not None else os.environ.get("SECATEUR_DATA")
    return DATASETS[name](None if root is None else Path(root))


def digits(_: Path | None = None) -> Dataset:
    """scikit-learn's 1797 real 8x8 digits, pixels/16, split 1437/360 stratified by class with a fixed seed."""
    x, y = _all_digits()
    train, test = _stratified_split(y, test_count=360)
    return _dataset("digits", x[train], y[train], x[test], y[test])


def digits_folds(k: int = 5, seed: int = SPLIT_SEED) -> list[Dataset]:
    """k data sets over all 1797 digits for cross-validation; their test parts partition the data.

    Stratified: a class has the same number of test images in every fold, give or take one, and so have the folds in
    all. Each is normalized by its own training part, so nothing of a test image is in it. InputError where a class has
    fewer than k images.
    """
    x, y = _all_digits()
    rarest = int(np.bincount(y).min())
    if not 2 <= k <= rarest:
        raise InputError(f"cannot split the digits: got {k} folds, need 2 to {rarest}, the images of the rarest class")
    fold = _stratified_folds(y, k, seed)
    parts = [(fold != i, fold == i) for i in range(k)]
    return [
        _dataset(f"digits[fold {i}/{k}]", x[train], y[train], x[test], y[test])
        for i, (train, test) in enumerate(parts, start=1)
    ]


def mnist(root: Path | None) -> Dataset:
    """MNIST from `root` or `root`/mnist (idx files, gzipped or not); upscaled digits where there is none."""
    for folder in () if root is None else (root, root / "mnist"):
        paths = {part: _find(folder, stem) for part, stem in _MNIST_FILES.items()}
        if all(paths.values()):
            parts = {part: _read_idx(path) for part, path in paths.items() if path is not None}
            x = {k: (v / np.float32(255.0)).astype(np.float32)[:, None] for k, v in parts.items() if k[0] == "x"}
            y = {k: v.astype(np.int64) for k, v in parts.items() if k[0] == "y"}
            return _dataset("mnist", x["x_train"], y["y_train"], x["x_test"], y["y_test"])
    return digits_upscaled()


def digits_upscaled(_: Path | None = None) -> Dataset:
    """The 8x8 digits interpolated to 28x28: a stand-in with MNIST's shape, and never called MNIST."""
    small = digits()
    return _dataset(
        "digits-upscaled", _upscale(small.x_train, 28), small.y_train, _upscale(small.x_test, 28), small.y_test
    )


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "digits-upscaled": digits_upscaled,
}


def _dataset(name: str, x_train: Float32, y_train: Labels, x_test: Float32, y_test: Labels) -> Dataset:
    mean, std = round(float(x_train.mean()), 4), round(float(x_train.std()), 4)
    labels = tuple(str(digit) for digit in range(10))
    return Dataset(name, x_train, y_train, x_test, y_test, (mean,), (std,), labels)


def _all_digits() -> tuple[Float32, Labels]:
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    return (images / 16.0).astype(np.float32).reshape(-1, 1, 8, 8), targets.astype(np.int64)


def _stratified_folds(y: Labels, k: int, seed: int) -> Labels:
    """The fold (B,) of each sample: classes are shuffled, then dealt like cards without starting anew at each class."""
    rng = np.random.default_rng(seed)
    dealt = np.concatenate([rng.permutation(np.flatnonzero(y == c)) for c in np.unique(y)])
    fold = np.empty(len(y), dtype=np.int64)
    fold[dealt] = np.arange(len(y)) % k
    return fold


def _stratified_split(y: Labels, test_count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Train and test indices: each class gives its share of the test set, largest remainders rounded up."""
    rng = np.random.default_rng(SPLIT_SEED)
    classes, counts = np.unique(y, return_counts=True)
    shares = counts * test_count / len(y)
    quotas = np.floor(shares).astype(int)
    quotas[np.argsort(quotas - shares, kind="stable")[: test_count - quotas.sum()]] += 1
    picks = [rng.permutation(np.flatnonzero(y == c))[:q] for c, q in zip(classes, quotas, strict=True)]
    test = np.sort(np.concatenate(picks))
    return np.setdiff1d(np.arange(len(y)), test), rng.permutation(test)


def _upscale(images: Float32, size: int) -> Float32:
    """Bilinear interpolation of (B, C, n, n) to (B, C, size, size), pixel centres aligned, edges clamped."""
    n = images.shape[-1]
    position = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    left = np.minimum(position.astype(int), n - 2)
    matrix = np.zeros((size, n), dtype=np.float32)
    matrix[np.arange(size), left] = 1 - (position - left)
    matrix[np.arange(size), left + 1] = position - left
    return np.asarray(matrix @ images @ matrix.T, dtype=np.float32)


def _find(folder: Path, stem: str) -> Path | None:
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def _read_idx(path: Path) -> npt.NDArray[Any]:
    """An idx file of unsigned bytes: two zero bytes, type, number of axes, big-endian sizes, then the values."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise InputError(f"cannot read {path.name}: {error}; need an idx file; try fetching it again") from error
    axes = raw[3] if len(raw) > 3 else 0
    header = 4 + 4 * axes
    if raw[:3] != bytes((0, 0, _IDX_UNSIGNED_BYTE)) or len(raw) < header:
        raise InputError(f"cannot read {path.name}: not an idx file of unsigned bytes", Reason.BYTES_MALFORMED)
    shape = tuple(np.frombuffer(raw, ">u4", count=axes, offset=4).tolist())
    if len(raw) != header + int(np.prod(shape)):
        raise InputError(
            f"cannot read {path.name}: got {len(raw)} bytes, need {header + int(np.prod(shape))} for shape {shape}",
            Reason.BYTES_TRUNCATED,
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
