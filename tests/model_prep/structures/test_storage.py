"""The compact format of gather-scatter patterns: round trips and exact sizes; and integers packed in bits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime.errors import ModelError
from model_prep.structures import Balanced, GatherStorage, Layer, decode_gather, encode_gather
from model_prep.structures.bits import bits_for, pack, packed_size, unpack
from tests.model_prep.structures.shapes import SEEDS, energies


@given(values=st.lists(st.integers(0, 2**20 - 1), max_size=40), bits=st.integers(0, 24))
@settings(max_examples=200, deadline=None)
def test_packed_integers_round_trip(values: list[int], bits: int) -> None:
    array = np.array(values, dtype=np.int64) % (1 << bits)
    data = pack(array, bits)
    assert len(data) == packed_size(len(values), bits) == (len(values) * bits + 7) // 8
    assert np.array_equal(unpack(data, bits, len(values)), array)


def test_integers_that_do_not_fit_are_refused() -> None:
    assert [bits_for(n) for n in (0, 1, 2, 3, 4, 5, 8, 9)] == [0, 0, 1, 2, 2, 3, 3, 4]
    for bad in ([4], [-1]):
        with pytest.raises(ModelError, match="cannot pack"):
            pack(np.array(bad), 2)
    with pytest.raises(ModelError, match="cannot unpack"):
        unpack(b"\0\0", 2, 4)


@given(
    size=st.sampled_from([(8, 8), (8, 2), (8, 1), (4, 2), (1, 1), (6, 3)]),
    rows=st.integers(1, 20),
    extra=st.integers(0, 30),
    density=st.floats(0.0, 1.0),
    seed=SEEDS,
    cyclic=st.booleans(),
    kind=st.sampled_from([np.int8, np.float32, np.float64]),
)
@settings(max_examples=150, deadline=None)
def test_gather_storage_round_trips_and_states_its_size(
    size: tuple[int, int], rows: int, extra: int, density: float, seed: int, cyclic: bool, kind: type[np.generic]
) -> None:
    (bank, per_row), columns = size, size[0] + extra
    layer = Layer("w", "dense", (rows, columns))
    structure = Balanced(bank, per_row, cyclic, "greedy")
    mask = structure.keep(layer, energies(layer, seed), density)
    drawn = np.random.default_rng(seed).integers(-9, 10, mask.shape)  # some kept weights are zero
    weights: npt.NDArray[np.generic] = (drawn * mask).astype(kind)
    storage = encode_gather(weights, bank, per_row, mask)
    assert np.array_equal(decode_gather(storage), weights)
    data = storage.to_bytes()
    bundles = -(-rows // (bank // per_row))
    lanes = bundles * structure.groups(layer, density) * bank
    index_bits, row_bits = (-(-columns // bank) - 1).bit_length(), (bank // per_row - 1).bit_length()
    exact = (
        4 * (bundles + 1) + -(-lanes * index_bits // 8) + -(-lanes * row_bits // 8) + lanes * np.dtype(kind).itemsize
    )
    assert len(data) == storage.byte_size == exact
    if rows % (bank // per_row) == 0:
        assert lanes == mask.sum()
    again = GatherStorage.from_bytes(data, storage.shape, bank, per_row, kind)
    assert again.to_bytes() == data
    assert np.array_equal(decode_gather(again), weights)
    for broken in (data[:-1], data + b"\0", b""):
        with pytest.raises(ModelError, match="cannot read a stored gather pattern"):
            GatherStorage.from_bytes(broken, storage.shape, bank, per_row, kind)


def test_bundles_may_have_different_numbers_of_groups() -> None:
    mask = np.zeros((4, 8), dtype=np.bool_)
    mask[0, [0, 5]] = mask[1, [2, 3]] = True  # one group of GS(4, 2)
    mask[2, :4] = mask[3, 4:] = True  # two groups
    weights = np.where(mask, np.arange(1.0, 33.0).reshape(4, 8), 0.0)
    storage = encode_gather(weights, 4, 2)
    assert storage.indptr.tolist() == [0, 1, 3]
    assert np.array_equal(decode_gather(storage), weights)


def test_an_unbalanced_matrix_cannot_be_stored() -> None:
    with pytest.raises(ModelError, match="pass the mask where kept weights may be zero"):
        encode_gather(np.array([[1.0, 0.0], [1.0, 1.0]]), 2, 1)
