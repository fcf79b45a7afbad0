"""The choice of the channels that go: exact counts, a part of every layer kept, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from he_runtime.errors import ModelError
from model_prep.channels.selection import select_channels


def test_the_lowest_scores_go_wherever_they_are() -> None:
    scores = {"a": np.array([5.0, 0.1, 3.0, 0.2]), "b": np.array([0.3, 9.0, 0.4, 8.0, 7.0, 6.0])}
    keep = select_channels(scores, 0.4)
    assert np.flatnonzero(~keep["a"]).tolist() == [1, 3] and np.flatnonzero(~keep["b"]).tolist() == [0, 2]


def test_a_weak_layer_keeps_its_strongest_and_the_count_is_exact() -> None:
    scores = {"weak": np.array([0.1, 0.3, 0.2]), "strong": np.arange(20.0) + 1}
    keep = select_channels(scores, 0.5)
    assert keep["weak"].tolist() == [False, True, False]
    assert sum(int((~k).sum()) for k in keep.values()) == int(0.5 * 23)
    wide = select_channels({"wide": np.arange(40.0), "other": np.full(60, 100.0)}, 0.39, limit=0.95)
    assert np.flatnonzero(wide["wide"]).tolist() == [38, 39] and wide["other"].sum() == 59


def test_ties_keep_the_lower_index() -> None:
    keep = select_channels({"a": np.ones(3), "b": np.ones(3)}, 0.5)
    assert keep["a"].tolist() == [True, True, False] and keep["b"].tolist() == [True, False, False]


def test_what_is_not_removable_neither_goes_nor_counts() -> None:
    scores = {"a": np.zeros(4), "b": np.arange(1.0, 5.0)}
    keep = select_channels(scores, 0.5, removable={"a": np.zeros(4, dtype=bool), "b": np.ones(4, dtype=bool)})
    assert keep["a"].all() and keep["b"].tolist() == [False, False, True, True]


def test_impossible_ratios_name_the_nearest() -> None:
    scores = {"a": np.arange(4.0), "b": np.arange(4.0)}
    with pytest.raises(ModelError, match=r"try a ratio of 0\.75$"):
        select_channels(scores, 0.9)
    keep = select_channels(scores, 0.75)
    assert all(k.tolist() == [False, False, False, True] for k in keep.values())
    for wrong in (-0.1, 1.0):
        with pytest.raises(ModelError, match="0 <= ratio < 1"):
            select_channels(scores, wrong)
    with pytest.raises(ModelError, match="finite"):
        select_channels({"a": np.array([1.0, np.nan])}, 0.5)
    with pytest.raises(ModelError, match="no scores"):
        select_channels({}, 0.5)
