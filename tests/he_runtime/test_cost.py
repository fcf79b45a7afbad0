"""Prices: latency, bytes, memory and keys of a plan, and how far they can be trusted."""

from __future__ import annotations

import dataclasses
import datetime
import json
import subprocess
import sys
from collections import Counter

import pytest

from he_runtime.cost import price
from he_runtime.cost.environment import processor_name
from he_runtime.errors import PlanError
from he_runtime.ring import KeySetSpec
from he_runtime.wire import ciphertexts_byte_size, key_set_byte_size
from tests.he_runtime.costs import HERE, N, plan, table


def test_the_price_is_the_sum_by_hand() -> None:
    t, report = table(), price(plan(), table(), HERE)
    by_hand = Counter(
        {
            ("rotate", 1): 1, ("square", 1): 1, ("relinearize", 1): 1, ("rescale", 1): 1,
            ("rotate", 0): 2, ("mul_plain", 0): 3, ("add", 0): 2, ("upload", 1): 1, ("download", 0): 1,
        }
    )  # fmt: skip
    seconds = sum(n * t.entries[leaf, N, level].seconds for (leaf, level), n in by_hand.items())
    assert report.latency_ms == pytest.approx(seconds * 1e3)
    assert report.low_ms == pytest.approx(seconds * 0.9e3) and report.high_ms == pytest.approx(seconds * 1.1e3)
    assert sum(x.ms for x in report.layers) + report.upload_ms + report.download_ms == pytest.approx(report.latency_ms)
    assert [(x.name, x.level, x.levels_left) for x in report.layers] == [("first", 1, 1), ("second", 1, 0)]
    assert all(x.low_ms == pytest.approx(0.9 * x.ms) and x.high_ms == pytest.approx(1.1 * x.ms) for x in report.layers)
    assert report.counts == {"add": 2, "mul_plain": 3, "square": 1, "relinearize": 1, "rescale": 1, "rotate": 3}


def test_bytes_levels_and_sigma_are_the_plans() -> None:
    p, report = plan(), price(plan(), table())
    assert report.upload_bytes == ciphertexts_byte_size(1, 1, p.params, seeded=True)
    assert report.download_bytes == ciphertexts_byte_size(1, 0, p.params)
    assert report.key_bytes == key_set_byte_size(p.keys, p.params, True)
    assert report.plaintext_bytes == 3 * N * 8 == sum(x.plaintext_bytes for x in report.layers)
    assert (report.levels, report.levels_left, report.sigma, report.error_bound) == (1, 0, 0.5, 3.0)
    assert report.loaded_key_bytes == 4 * 2 * 2 * 3 * N * 8  # steps 1, 2 and 3 and the relinearization key, two primes
    pairs, triple = 2 * (2 * 2), 3 * 2  # the input and its rotation; the square: memory of one serves no other size
    low = 1 + 1 + 2 + 1 + 2  # in and out of the transform, two rotations, one sum, a product and its sum
    assert report.ciphertext_bytes == (pairs + triple + 2 * low) * N * 8
    assert report.vector_bytes == 3 * 8  # constants
    roots = 2 * 2 * (2 + 3 + 4) * 16  # two bases of 2, 3 and 4 primes, both ways
    assert report.table_bytes == N * (roots + 4 * 4)
    parts = (report.plaintext_bytes, report.vector_bytes, report.loaded_key_bytes, report.ciphertext_bytes)
    assert report.peak_bytes == sum(parts) + report.table_bytes


def test_keys_are_priced_one_by_one() -> None:
    p, report = plan(), price(plan(), table())
    keys = {key.name: key for key in report.keys}
    assert set(keys) == {"relinearize", "rotate by 1", "rotate by 2", "rotate by 3"}
    assert keys["rotate by 3"].element == p.params.galois_element(3)
    assert dict(keys["rotate by 3"].uses) == {"first": 1} and dict(keys["rotate by 1"].uses) == {"second": 1}
    assert (keys["rotate by 3"].level, keys["rotate by 1"].level) == (1, 0), "cut to the level where it is used"
    assert keys["rotate by 3"].bytes > 2 * keys["rotate by 1"].bytes
    empty = key_set_byte_size(KeySetSpec(()), p.params, True)
    assert sum(key.bytes for key in report.keys) + empty == report.key_bytes


def test_a_shipped_table_claims_an_order_of_magnitude_only() -> None:
    measured, shipped = price(plan(), table(), HERE), price(plan(), table("shipped"), HERE)
    assert measured.confidence == "calibrated on this machine"
    assert shipped.confidence == "order of magnitude"
    assert measured.warnings == shipped.warnings == ()
    assert shipped.latency_ms == measured.latency_ms
    assert shipped.high_ms / shipped.low_ms == pytest.approx(10)


def test_a_report_is_plain_json() -> None:
    record = json.loads(json.dumps(price(plan(), table()).to_json()))
    assert record["counts"]["rotate"] == 3 and record["layers"][0]["name"] == "first"


def test_pricing_loads_no_he_library_and_no_secret_side() -> None:
    code = (
        "import sys; import he_runtime.cost as c; c.load_default('tenseal');"
        "bad = [m for m in sys.modules if m.startswith(('tenseal', 'Pyfhel', 'torch', 'he_runtime.backends.tenseal'))"
        " or m.startswith('he_runtime.cost.calibrate')]; sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"machine": "another"}, "measured on a machine, and this is another"),
        ({"libraries": {"tenseal": "0.3.16"}}, "measured with tenseal 0.3.18, and here is 0.3.16"),
        ({"libraries": {}}, "measured with tenseal 0.3.18, and here is none"),
        ({"now": datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC)}, "measured 334 days ago"),
        ({"now": datetime.datetime(2025, 12, 1, tzinfo=datetime.UTC)}, "dated 31 days ahead"),
    ],
)
def test_a_foreign_or_stale_table_is_named(change: dict[str, object], says: str) -> None:
    environment = dataclasses.replace(HERE, **change)  # type: ignore[arg-type]
    report = price(plan(), table(), environment)
    (warning,) = report.warnings
    assert says in warning and table().name in warning and "secateur calibrate" in warning
    assert report.confidence == f"order of magnitude, {says}"
    assert report.high_ms / report.low_ms == pytest.approx(10), "spreads of elsewhere say nothing of here"
    assert table().doubts(HERE) == ()


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (
            "cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nmodel name\t: other\n",
            "AMD EPYC (family 25, model 17)",
        ),
        ("model name\t: ARMv7 Processor rev 3: v7l\n", "ARMv7 Processor rev 3: v7l"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\ncpu family\t: 6\n", ""),
        ("", ""),
    ],
)
def test_generations_of_processors_of_one_name_differ(cpuinfo: str, name: str) -> None:
    assert processor_name(cpuinfo) == name


def test_a_table_is_of_one_back_end() -> None:
    assert table().require_backend("tenseal") == table()
    with pytest.raises(PlanError, match=r"'pyfhel'.*is of 'tenseal'.*--backend pyfhel"):
        table().require_backend("pyfhel")
