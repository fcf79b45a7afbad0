"""Data sets: the split, the stand-in for MNIST and its honest name, idx files and their defects."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from he_runtime.errors import InputError, Reason
from model_prep.data import digits_folds, load


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes((0, 0, 8, values.ndim)) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    raw = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_mnist(folder: Path, suffix: str = ".gz", train: int = 12, test: int = 4) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, size=(train + test, 28, 28)), rng.integers(0, 10, size=train + test)
    for stem, part in (("train", slice(0, train)), ("t10k", slice(train, None))):
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images[part])
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", labels[part])
    return images, labels


def test_digits_are_split_by_class_without_overlap() -> None:
    data = load("digits")
    assert data.name == "digits"
    assert data.x_train.shape == (1437, 1, 8, 8) and data.x_test.shape == (360, 1, 8, 8)
    assert data.x_train.dtype == np.float32 and data.x_train.min() >= 0 and data.x_train.max() == 1
    shares = np.bincount(data.y_test) / np.bincount(np.concatenate([data.y_train, data.y_test]))
    assert np.abs(shares - 360 / 1797).max() < 0.01
    train = {x.tobytes() for x in data.x_train}
    assert sum(x.tobytes() in train for x in data.x_test) == 0


def test_the_split_is_always_the_same() -> None:
    assert np.array_equal(load("digits").x_test, load("digits").x_test)


def test_normalized_data_have_mean_zero_and_deviation_one() -> None:
    x = load("digits").normalized("train")
    assert abs(x.mean()) < 1e-3 and abs(x.std() - 1) < 1e-3


def test_the_stand_in_for_mnist_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SECATEUR_DATA", raising=False)
    data = load("mnist")
    assert data.name == "digits-upscaled" and data.x_train.shape == (1437, 1, 28, 28)
    assert load("mnist", tmp_path).name == "digits-upscaled"


def test_upscaling_is_bilinear() -> None:
    """Constants stay, a linear ramp stays a ramp away from the clamped edges, and brightness hardly moves."""
    small, large = load("digits").x_train, load("digits-upscaled").x_train
    assert np.abs(small.mean((1, 2, 3)) - large.mean((1, 2, 3))).max() < 0.02
    assert large.min() >= small.min() and large.max() <= small.max() + 1e-6
    assert np.allclose(large[:, :, 0, 0], small[:, :, 0, 0])


@pytest.mark.parametrize("suffix", ["", ".gz"], ids=["plain", "gzip"])
@pytest.mark.parametrize("nested", [False, True])
def test_mnist_is_read_from_a_directory(tmp_path: Path, suffix: str, nested: bool) -> None:
    images, labels = write_mnist(tmp_path / "mnist" if nested else tmp_path, suffix)
    data = load("mnist", tmp_path)
    assert data.name == "mnist" and data.x_train.shape == (12, 1, 28, 28)
    assert np.allclose(data.x_train[:, 0] * 255, images[:12]) and np.array_equal(data.y_test, labels[12:])


def test_the_environment_names_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path)
    monkeypatch.setenv("SECATEUR_DATA", str(tmp_path))
    assert load("mnist").name == "mnist"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda raw: raw[:-1], Reason.BYTES_TRUNCATED),
        (lambda raw: raw + b"x", Reason.BYTES_TRUNCATED),
        (lambda raw: b"\x01" + raw[1:], Reason.BYTES_MALFORMED),
        (lambda raw: raw[:3], Reason.BYTES_MALFORMED),
        (lambda raw: b"", Reason.BYTES_MALFORMED),
    ],
    ids=["short", "long", "magic", "header", "empty"],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: object, reason: Reason) -> None:
    write_mnist(tmp_path, "")
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(InputError, match="train-images") as caught:
        load("mnist", tmp_path)
    assert caught.value.reason is reason


def test_a_damaged_gzip_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="t10k-labels"):
        load("mnist", tmp_path)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="need one of"):
        load("imagenet")


def test_a_subset_says_so() -> None:
    data = load("digits")
    small = data.subset(100, 20)
    assert small.name == "digits[100/20]" and len(small.x_train) == 100 and len(small.y_test) == 20
    assert data.subset(10**6, 10**6) is data


@pytest.mark.parametrize("k", [2, 5, 7])
def test_folds_partition_the_digits(k: int) -> None:
    folds, whole = digits_folds(k), load("digits")
    everything = sorted(x.tobytes() for x in np.concatenate([whole.x_train, whole.x_test]))
    assert len(folds) == k
    assert sorted(x.tobytes() for fold in folds for x in fold.x_test) == everything
    for fold in folds:
        assert sorted(x.tobytes() for x in np.concatenate([fold.x_train, fold.x_test])) == everything


def test_folds_keep_labels_with_their_images() -> None:
    whole = load("digits")
    label = {
        x.tobytes(): y
        for images, labels in ((whole.x_train, whole.y_train), (whole.x_test, whole.y_test))
        for x, y in zip(images, labels, strict=True)
    }
    for fold in digits_folds():
        assert all(label[x.tobytes()] == y for x, y in zip(fold.x_test, fold.y_test, strict=True))
        assert all(label[x.tobytes()] == y for x, y in zip(fold.x_train, fold.y_train, strict=True))


def test_folds_are_stratified_and_of_equal_size() -> None:
    counts = np.array([np.bincount(fold.y_test, minlength=10) for fold in digits_folds(5)])
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert sorted(counts.sum(1)) == [359, 359, 359, 360, 360]


def test_folds_depend_on_the_seed_alone() -> None:
    first, again, other = digits_folds(seed=1)[0], digits_folds(seed=1)[0], digits_folds(seed=2)[0]
    assert np.array_equal(first.x_test, again.x_test)
    assert not np.array_equal(first.x_test, other.x_test)


def test_folds_are_normalized_by_their_training_part_and_say_which_they_are() -> None:
    folds = digits_folds(5)
    assert [fold.name for fold in folds] == [f"digits[fold {i}/5]" for i in range(1, 6)]
    for fold in folds:
        assert fold.mean == (round(float(fold.x_train.mean()), 4),)
        assert abs(fold.normalized("train").mean()) < 1e-3
    assert len({fold.mean for fold in folds}) > 1


@pytest.mark.parametrize("k", [-1, 0, 1, 175])
def test_impossible_numbers_of_folds_are_refused(k: int) -> None:
    with pytest.raises(InputError, match="need 2 to 174"):
        digits_folds(k)
