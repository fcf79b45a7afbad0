"""The next version of a model with real keys: only those that its predecessor did not need are made and sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client import Client
from client.record_index import RECORDS
from he_runtime import Plan, compile
from he_runtime.model import CompressedModel
from he_runtime.ring import KeySetSpec
from he_runtime.wire import key_set_byte_size
from tests.he_runtime.networks import NETWORKS
from tests.integration.stack import Stack, sample, serving

MODEL = "pooled"


@pytest.fixture(scope="module")
def model() -> CompressedModel:
    model = NETWORKS[MODEL]().calibrated(MODEL)
    return model.with_(input=replace(model.input, low=-1.0, high=1.0))


@pytest.fixture(scope="module")
def plans(model: CompressedModel) -> dict[str, Plan]:
    """Version 1 makes some rotations of two others, for fewer keys, version 2 has a key for each."""
    error = 0.05 * max(map(abs, model.ranges[model.output.node]))
    full = compile(model, max_error=error)
    few = compile(model, max_error=error, max_key_bytes=full.keys.byte_size(full.params, True) * 3 // 4)
    assert few.params.digest == full.params.digest and set(few.keys.requests) < set(full.keys.requests)
    return {"1": few, "2": full}


@pytest.fixture(scope="module")
def served(plans: dict[str, Plan], model: CompressedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("versions")
    for version, plan in plans.items():
        plan.save(model.save(root / "models" / MODEL / version) / "plan")
    with serving(root, {MODEL: plans["2"]}) as stack:
        yield stack


def asked(client: Client, plan: Plan, version: str, served: Stack) -> int:
    """Predict with one version, check the answer, and return what was uploaded for it."""
    answer = client.predict(MODEL, sample(MODEL), version=version)
    error = np.abs(answer.logits - served.expected(MODEL, sample(MODEL))).max()
    assert 0 < error <= plan.error_bound == answer.error_bound
    assert answer.key_bytes == key_set_byte_size(plan.keys, plan.params, True)
    return answer.uploaded_bytes


def size_of(plan: Plan, keys: KeySetSpec | None = None) -> int:
    return key_set_byte_size(keys or plan.keys, plan.params, True)


@pytest.fixture
def connect(served: Stack, tmp_path: Path) -> Callable[[], Client]:
    return lambda: served.connect(tmp_path / "home")


def test_the_second_version_uploads_only_its_new_keys(
    served: Stack, connect: Callable[[], Client], plans: dict[str, Plan], tmp_path: Path
) -> None:
    few, full = plans["1"], plans["2"]
    with connect() as client:
        assert asked(client, few, "1", served) == size_of(few)
        sent = asked(client, full, "2", served)
        new = KeySetSpec(tuple(set(full.keys.requests) - set(few.keys.requests)), full.keys.gadget)
        rows = (len(full.keys.requests) - len(new.requests)) * 48  # in the table of the whole set
        assert sent == size_of(full, new) + rows < size_of(full) // 2
        assert asked(client, few, "1", served) == asked(client, full, "2", served) == 0
    (index,) = tmp_path.rglob(RECORDS)
    records = json.loads(index.read_text())
    assert len(records) == len(full.keys.requests)


def test_the_next_version_outlives_its_predecessors_keys(
    served: Stack, connect: Callable[[], Client], plans: dict[str, Plan]
) -> None:
    few, full = plans["1"], plans["2"]
    with connect() as client:
        asked(client, few, "1", served)
        (older,) = client.keys()
        asked(client, full, "2", served)
        client.delete_keys(older.handle)
        assert asked(client, full, "2", served) == 0
        assert asked(client, few, "1", served) < size_of(few) // 100, "the front alone: its keys are in the other set"


def test_a_damaged_index_is_found_out_by_the_workers(
    served: Stack, connect: Callable[[], Client], plans: dict[str, Plan], tmp_path: Path
) -> None:
    with connect() as client:
        asked(client, plans["1"], "1", served)
    (index,) = tmp_path.rglob(RECORDS)
    records = json.loads(index.read_text())
    index.write_text(json.dumps({name: [*r[:3], "0" * 64, r[4]] for name, r in records.items()}))
    with connect() as client:
        assert asked(client, plans["2"], "2", served) == size_of(plans["2"])
