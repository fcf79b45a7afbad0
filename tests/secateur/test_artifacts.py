"""compress, plan, estimate and calibrate: what they write, and what they say of it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from he_runtime import CompressedModel, Plan, compile, price
from he_runtime.backends import default_backend
from he_runtime.cost import CostTable, load_default
from he_runtime.plan.counts import leaf_totals
from secateur.artifacts import dense_twin
from server.models import checksums

COMPRESS_KEYS = {
    "model", "version", "directory", "model_digest", "metadata", "dense_counts", "plan", "steps", "resumed_after",
    "picture", "version_digest",
}  # fmt: skip
PLAN_KEYS = {
    "model", "model_digest", "plan_digest", "N", "log2_qp", "prime_bits", "special_prime_bits", "gadget", "keys",
    "plaintexts", "ops", "counts", "sigma", "error_bound", "layers", "disclosure",
}  # fmt: skip
ESTIMATE_KEYS = {
    "model", "plan_digest", "latency_ms", "low_ms", "high_ms", "upload_ms", "download_ms", "layers", "counts", "levels",
    "levels_left", "upload_bytes", "download_bytes", "key_bytes", "keys", "plaintext_bytes", "vector_bytes",
    "loaded_key_bytes", "ciphertext_bytes", "table_bytes", "peak_bytes", "sigma", "error_bound", "table", "table_kind",
    "confidence", "warnings", "disclosure",
}  # fmt: skip


def test_compress_writes_what_it_reports(made: Any) -> None:
    record = made.record
    assert set(record) == COMPRESS_KEYS
    model, plan = CompressedModel.load(made.directory), Plan.load(made.directory / "plan")
    assert (record["model"], record["version"], record["directory"]) == ("tiny", "1", str(made.directory))
    assert record["model_digest"] == model.digest == plan.model_digest
    assert record["plan"]["plan_digest"] == plan.digest
    assert record["metadata"]["accuracy"]["final"] > 0.5
    assert record["dense_counts"] == json.loads((made.directory / "plan" / "dense_counts.json").read_text())
    dense = compile(dense_twin(model))
    assert record["dense_counts"] == leaf_totals(dense.counts)
    table = load_default(default_backend())
    assert price(dense, table).latency_ms > price(plan, table).latency_ms


def test_compress_seals_what_it_wrote(made: Any, ask: Any, cli: Any, tmp_path: Path) -> None:
    """With every file but the list in it, so that a server which insists on seals takes it, and a changed one nowhere."""
    digests = checksums.read_list(made.directory)
    assert digests == checksums.file_digests(made.directory) and {"DIGEST", "plan/plan.json"} <= set(digests)
    assert made.record["version_digest"] == checksums.list_digest(digests)
    models = tmp_path / "models"
    version = shutil.copytree(made.directory, models / "tiny" / "1")
    (tmp_path / "server.toml").write_text("[repository]\nrequire_checksums = true\n")
    serve = ("serve", "--config", tmp_path / "server.toml", "--models", models, "--address", "127.0.0.1:0", "--check")
    assert ask(*serve)["ok"]
    counts = version / "plan" / "dense_counts.json"
    counts.write_text(counts.read_text() + " ")  # no digest of the model's or the plan's own covers it
    said = cli(*serve, "--json")
    assert said.code == 1 and "dense_counts.json" in json.loads(said.out)["problems"][0]


def test_a_version_that_is_planned_anew_is_sealed_anew(made: Any, cli: Any, refused: Any, tmp_path: Path) -> None:
    version = shutil.copytree(made.directory, tmp_path / "1")
    before = checksums.read_list(version)
    said = cli("plan", version, "--degree", 16384, "--output", version / "plan")
    assert said.code == 0 and "sealed its version anew" in said.err
    after = checksums.read_list(version)
    assert after == checksums.file_digests(version) and after != before
    (version / "dense_counts.json").write_text("{}")
    assert "'dense_counts.json'" in refused("plan", version, "--output", version / "plan")
    assert checksums.read_list(version) == after, "a new seal does not hide what was changed"


def test_compress_keeps_what_is_there_unless_told(made: Any, recipe: Any, refused: Any) -> None:
    before = (made.directory / "DIGEST").read_text()
    assert "--overwrite" in refused("compress", recipe, "--out", made.models)
    assert (made.directory / "DIGEST").read_text() == before


def test_compress_a_network_of_ones_own(ask: Any, recipe: Any, tmp_path: Any) -> None:
    """By package.module:factory, found in the working directory."""
    source = "from torch import nn\n\ndef small():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    (tmp_path / "my_network.py").write_text(source)
    record = ask("compress", recipe, "--module", "my_network:small", "--version", "own")
    assert record["directory"] == "models/tiny/own"
    assert [layer["kind"] for layer in record["plan"]["layers"]] == ["linear"]


def test_plan_describes_the_plan(made: Any, ask: Any) -> None:
    record = ask("plan", made.directory)
    assert set(record) == PLAN_KEYS | {"cost"}
    assert set(record["cost"]) == ESTIMATE_KEYS - {"model", "plan_digest", "disclosure"}
    planned = compile(CompressedModel.load(made.directory))
    assert record["plan_digest"] == planned.digest
    assert record["counts"] == leaf_totals(planned.counts)
    assert record["N"] == 2 ** round(len(f"{record['N']:b}") - 1)
    assert record["log2_qp"] == pytest.approx(sum(record["prime_bits"]) + sum(record["special_prime_bits"]))
    assert 6 * record["sigma"] <= record["error_bound"] == planned.error_bound


def test_plan_prints_the_listing_of_a_stored_plan(made: Any, cli: Any, tmp_path: Any) -> None:
    said = cli("plan", made.directory / "plan", "--output", tmp_path / "copy")
    assert said.code == 0
    plan = Plan.load(made.directory / "plan")
    assert said.out.rstrip("\n").endswith("\n" + plan.listing().rstrip("\n"))
    report = price(plan, load_default(default_backend()))
    for layer in report.layers:
        (row,) = re.findall(
            rf"^{re.escape(layer.name)} +(■*)(□*) (\d+) +(\d+) .* (\S+) +(\S+)%$", said.out, re.MULTILINE
        )
        left, used, stated, rotations, ms, share = row
        assert (len(left), len(used), int(stated)) == (
            layer.levels_left,
            layer.level - layer.levels_left,
            layer.levels_left,
        )
        assert int(rotations) == layer.rotations
        assert float(ms) == round(layer.ms, 1)
        assert float(share) == pytest.approx(100 * layer.ms / report.latency_ms, abs=0.06)
    assert f"for {len(plan.keys.requests)} keys" in said.out
    assert Plan.load(tmp_path / "copy").digest == Plan.load(made.directory / "plan").digest


def test_plan_takes_a_budget_for_keys(made: Any, ask: Any) -> None:
    free = ask("plan", made.directory)
    budget = free["cost"]["key_bytes"] * 0.8
    record = ask("plan", made.directory, "--max-keys", budget / 1e6)
    assert record["cost"]["key_bytes"] <= budget
    assert record["counts"]["rotate"] > free["counts"]["rotate"]


def test_plan_takes_a_gadget(made: Any, ask: Any, cli: Any) -> None:
    limits = ["--degree", 16384, "--max-error", 0.5, "--backend", "native"]
    record = ask("plan", made.directory, *limits, "--gadget", "hybrid-2")
    assert record["gadget"] == "hybrid-2"
    for more in (["--batch", 8], ["--backend", "tenseal"]):
        said = cli("plan", made.directory, "--gadget", "hybrid-2", *more)
        assert said.code == 1 and "cannot plan for gadget 'hybrid-2'" in said.err
    said = cli("plan", made.directory / "plan", "--gadget", "auto")
    assert said.code == 1 and "need a model directory" in said.err


def test_plan_takes_a_degree_and_an_error(made: Any, ask: Any) -> None:
    record = ask("plan", made.directory, "--degree", 16384, "--max-error", 0.5)
    assert record["N"] == 16384
    assert record["error_bound"] <= 0.5


def test_estimate_by_the_shipped_table(made: Any, ask: Any) -> None:
    record = ask("estimate", made.directory)
    assert set(record) == ESTIMATE_KEYS
    assert record["plan_digest"] == Plan.load(made.directory / "plan").digest
    assert record["low_ms"] < record["latency_ms"] < record["high_ms"]
    assert record["confidence"] == "order of magnitude"
    parts = sum(layer["ms"] for layer in record["layers"]) + record["upload_ms"] + record["download_ms"]
    assert parts == pytest.approx(record["latency_ms"])


def test_estimate_by_a_table_measured_here(made: Any, ask: Any, tmp_path: Any) -> None:
    path = tmp_path / "table.json"
    record = ask("calibrate", made.directory, "--output", path, "--seconds", 0.5)
    assert set(record) == {
        "file",
        "backend",
        "threads",
        "machine",
        "libraries",
        "date",
        "digest",
        "entries",
        "formulas",
    }
    table = CostTable.load(path)
    assert (record["file"], record["digest"], len(record["entries"])) == (str(path), table.digest, len(table.entries))
    assert all(entry["seconds"] > 0 for entry in record["entries"])
    found = ask("estimate", made.directory, "--table", path)
    assert found["latency_ms"] == price(Plan.load(made.directory / "plan"), table).latency_ms
    assert found["confidence"] == "calibrated on this machine"
    assert found["warnings"] == []


def test_calibrate_several_rings(ask: Any, cli: Any, refused: Any, made: Any, tmp_path: Path) -> None:
    record = ask("calibrate", "--degree", 4096, "--degree", 8192, "--seconds", 0.4, "--output", tmp_path / "t.json")
    assert {(e["N"], e["level"]) for e in record["entries"] if e["leaf"] == "rotate"} == {
        *((4096, level) for level in (0, 1)),
        *((8192, level) for level in (0, 1, 3)),
    }
    assert all(min(f["call"], f["butterfly"], f["element"]) >= 0 for f in record["formulas"])
    assert "need some of 4096" in refused("calibrate", "--degree", 5000)
    assert "try without --degree" in refused("calibrate", made.directory, "--degree", 4096)


def test_a_foreign_or_stale_table_is_named(made: Any, cli: Any, refused: Any, tmp_path: Path) -> None:
    elsewhere = replace(
        load_default("tenseal"), kind="measured", machine="a mainframe", date="2001-01-01T00:00:00+00:00"
    )
    path = elsewhere.save(tmp_path / "table.json")
    for command in ("estimate", "plan"):
        said = cli(command, made.directory, "--table", path, "--json")
        assert said.code == 0
        assert "warning: the cost table" in said.err and "measured on a mainframe" in said.err
        assert re.search(r"measured \d+ days ago", said.err)
        found = json.loads(said.out)
        cost = found.get("cost", found)
        assert len(cost["warnings"]) == 2 and cost["confidence"].startswith(
            "order of magnitude, measured on a mainframe"
        )
    assert "is of 'tenseal'" in refused("estimate", made.directory, "--table", path, "--backend", "pyfhel")
