"""Cost tables: the fit that prices what was not measured, their file, and hostile ones."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from he_runtime.cost import CostEntry, CostTable, load_default
from he_runtime.cost.fit import fit_leaf
from he_runtime.cost.formulas import leaf_terms, leaf_work
from he_runtime.errors import PlanError, Reason, WireError
from he_runtime.params import DEGREES
from tests.he_runtime.costs import LEAVES, N, table


def test_lookup_is_exact_where_measured_and_follows_the_counts_elsewhere() -> None:
    """With fewer points than prices everything costs in proportion to its work."""
    t = table()
    assert t.lookup("rotate", N, 1) is t.entries["rotate", N, 1]
    far, near = (t.lookup("rotate", 4 * N, level).seconds for level in (7, 2))
    assert far / near == pytest.approx(leaf_work("rotate", 4 * N, 7) / leaf_work("rotate", 4 * N, 2))
    assert t.lookup("conjugate", N, 1).seconds == pytest.approx(t.lookup("rotate", N, 1).seconds)


GRID = [(degree, level) for degree, top in ((4096, 1), (8192, 3), (16384, 7)) for level in sorted({0, top // 2, top})]
PRICES = (5e-6, 2.1e-9, 1.3e-9)  # a call, a butterfly, an element of a pass


def timings(leaf: str, noise: float = 0.0) -> dict[tuple[int, int], CostEntry]:
    """What a machine of these prices takes, each point off by some normal noise."""
    factors = np.random.default_rng(len(leaf)).normal(1, noise, len(GRID))
    seconds = [np.dot(PRICES, leaf_terms(leaf, *point)) * f for point, f in zip(GRID, factors, strict=True)]
    return {point: CostEntry(float(s), noise) for point, s in zip(GRID, seconds, strict=True)}


@pytest.mark.parametrize("leaf", (*LEAVES, "upload", "download"))
def test_a_fit_finds_the_prices_and_predicts_what_it_never_saw(leaf: str) -> None:
    exact, noisy = timings(leaf), timings(leaf, 0.04)
    for point in GRID:
        fit = fit_leaf(leaf, {p: entry for p, entry in noisy.items() if p != point})
        assert fit.entry(*point).seconds == pytest.approx(exact[point].seconds, rel=0.15)
    beyond = fit_leaf(leaf, noisy).entry(32768, 14).seconds
    assert beyond == pytest.approx(np.dot(PRICES, leaf_terms(leaf, 32768, 14)), rel=0.15)
    fit = fit_leaf(leaf, exact)
    assert fit.error < 1e-6
    assert fit.formula(32768, 10) == pytest.approx(np.dot(PRICES, leaf_terms(leaf, 32768, 10)), rel=1e-6)


def test_no_price_is_negative() -> None:
    """Times that fall with the work, which least squares without bounds would follow below zero."""
    falling = {(4096, 0): 1e-3, (8192, 0): 6e-4, (16384, 0): 3e-4, (32768, 0): 1e-4}
    fit = fit_leaf("rotate", {point: CostEntry(seconds, 0.0) for point, seconds in falling.items()})
    assert min(fit.call, fit.butterfly, fit.element) >= 0
    assert fit.entry(65536, 14).seconds > 0
    assert fit.error > 0.3, "and the error bar says how badly it fits"
    assert fit.entry(65536, 14).spread >= fit.error


def test_a_fit_follows_what_a_ring_measures_between_its_levels() -> None:
    """Caches make large rings slower than any formula: their own points count there, and only there."""
    points = timings("mul_plain")
    slow = {p: CostEntry(e.seconds * (1.4 if p[0] == 16384 else 1), e.spread) for p, e in points.items()}
    fit = fit_leaf("mul_plain", slow)
    for level in (5, 9):  # between and above the measured ones
        assert fit.entry(16384, level).seconds == pytest.approx(
            1.4 * np.dot(PRICES, leaf_terms("mul_plain", 16384, level)), rel=0.05
        )


def test_the_shipped_table_is_one_formula_for_all_rings() -> None:
    """On real measurements: every point predicted without itself, half of them within a tenth."""
    errors = []
    for fit in load_default("tenseal").fits.values():
        for point, entry in fit.measured.items():
            without = fit_leaf(fit.leaf, {p: e for p, e in fit.measured.items() if p != point})
            errors.append(abs(without.entry(*point).seconds / entry.seconds - 1))
    assert float(np.median(errors)) < 0.1
    assert float(np.percentile(errors, 90)) < 0.3


@pytest.mark.parametrize("leaf", (*LEAVES, "conjugate", "upload", "download"))
def test_the_shipped_table_prices_every_leaf_and_grows_with_level_and_degree(leaf: str) -> None:
    t = load_default("tenseal")
    assert t.kind == "shipped"
    assert 0 < t.lookup(leaf, 8192, 1).seconds < t.lookup(leaf, 32768, 14).seconds < 10


def test_a_key_switch_is_limbs_squared_transforms() -> None:
    transform = N / 2 * math.log2(N)
    assert leaf_work("rotate", N, 2) == pytest.approx(5 * 4 * transform + (2 * 3 * 4 + 12) * N)
    assert leaf_work("rescale", N, 2) == pytest.approx(6 * transform + 6 * N)


def test_a_missing_leaf_or_table_is_a_typed_error() -> None:
    only_add = dataclasses.replace(table(), entries={("add", N, 0): CostEntry(1e-6, 0.0)})
    with pytest.raises(PlanError, match="rotate"):
        only_add.lookup("rotate", N, 0)
    for name in ("none", "../tables/tenseal", ""):
        with pytest.raises(PlanError, match="no cost table"):
            load_default(name)


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    t = table()
    loaded = CostTable.load(t.save(tmp_path / "t.json"))
    assert loaded == t and loaded.digest == t.digest
    with pytest.raises(WireError, match="absent"):
        CostTable.load(tmp_path / "absent.json")


def _sealed(**changes: object) -> bytes:
    """A record with changes and, where the changes allow one, a digest that fits."""
    record = json.loads(table().to_json()) | changes
    return json.dumps(record).encode()


HOSTILE = {
    "empty": b"",
    "not json": b"{",
    "not a record": b"[1]",
    "deep": b"[" * 5000,
    "not text": b"\xff\xfe",
    "no entries": _sealed(entries=[]),
    "entries of another type": _sealed(entries={"a": 1}),
    "short row": _sealed(entries=[["add", N, 0, 1.0]]),
    "unknown leaf": _sealed(entries=[["evil", N, 0, 1.0, 0.1]]),
    "negative time": _sealed(entries=[["add", N, 0, -1.0, 0.1]]),
    "zero time": _sealed(entries=[["add", N, 0, 0.0, 0.1]]),
    "boolean level": _sealed(entries=[["add", N, True, 1.0, 0.1]]),
    "level out of range": _sealed(entries=[["add", N, 10**9, 1.0, 0.1]]),
    "repeated": _sealed(entries=[["add", N, 0, 1.0, 0.1]] * 2),
    "infinite": table().to_json().replace(b'"rotate",4096,0,', b'"rotate",4096,0,Infinity,', 1),
    "not a number": _sealed(entries=[["add", N, 0, "1", 0.1]]),
    "kind": _sealed(kind="exact"),
    "threads": _sealed(threads=0),
    "libraries": _sealed(libraries=[1]),
    "long text": _sealed(machine="x" * 1000),
    "no date": _sealed(date="yesterday"),
    "extra field": _sealed(extra=1),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_tables_are_refused(data: bytes) -> None:
    with pytest.raises(WireError) as caught:
        CostTable.parse(data)
    assert caught.value.reason is Reason.BYTES_MALFORMED


def test_altered_newer_and_huge_tables_are_refused_by_reason() -> None:
    altered = table().to_json().replace(b"a machine", b"b machine")
    for data, reason in (
        (altered, Reason.DIGEST_MISMATCH),
        (_sealed(version=2), Reason.VERSION_UNKNOWN),
        (b" " * (5 << 20), Reason.LIMIT_EXCEEDED),
    ):
        with pytest.raises(WireError) as caught:
            CostTable.parse(data)
        assert caught.value.reason is reason


@pytest.mark.parametrize("backend", ["pyfhel", "tenseal"])
def test_a_table_ships_for_every_back_end_and_ring(backend: str) -> None:
    shipped = load_default(backend)
    assert (shipped.backend, shipped.kind) == (backend, "shipped")
    for degree in DEGREES:
        assert 0 < shipped.lookup("add", degree, 0).seconds < shipped.lookup("rotate", degree, 1).seconds < 10
