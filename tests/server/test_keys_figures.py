"""Short forms of what the benchmarks of the service show of keys; the long ones are `make soak` and `make chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest
from stores import postgres_binaries

from benchmarks.service.commits import killed_commits
from benchmarks.service.outages import outages
from benchmarks.service.tenants import many_tenants
from benchmarks.service.uploads import cuts, speed

pytest.importorskip("jwt")


def test_random_cuts_send_at_most_one_chunk_again(tmp_path: Path) -> None:
    report = cuts(tmp_path, count=4, total_bytes=8 << 20)
    assert report["ok"], report


def test_the_front_door_does_not_grow_with_an_upload(tmp_path: Path) -> None:
    report = speed(tmp_path, 80 << 20, rounds=1)
    assert report["extra_memory_mib"] <= 64, report


def test_a_server_killed_while_it_commits_leaves_nothing_torn(tmp_path: Path) -> None:
    report = killed_commits(tmp_path, 2, ("moved", "pieces: named"))
    assert report["ok"], report


def test_many_tenants_in_a_small_cache_get_their_own_results(tmp_path: Path) -> None:
    report = many_tenants(tmp_path, tenants=10, count=80)
    assert report["ok"] and report["key_loads"] > 20, report


def test_outages_of_database_and_object_store_make_it_unready_and_lose_nothing(tmp_path: Path) -> None:
    if postgres_binaries() is None:
        pytest.skip("PostgreSQL is not installed: found no initdb; try apt-get install postgresql")
    for module in ("psycopg", "obstore", "moto"):
        pytest.importorskip(module)
    report = outages(tmp_path, seconds=0.5)
    assert report["ok"], report
