"""`secateur client`: every command against a real server, as a record and as what a person reads in 80 columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_runtime import CompressedModel, Plan, run_clear
from he_runtime.reference import normalize


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("client") / "home"


@pytest.fixture
def at(service: Any, home: Path) -> list[object]:
    """`secateur client` with the connection's options."""
    return ["client", "--server", service.address, "--certificate", service.certificate, "--home", home]


@pytest.fixture
def image(images: Any, tmp_path: Path) -> Path:
    path = tmp_path / "image.npy"
    np.save(path, images[0])
    return path


@pytest.fixture
def shown(cli: Any) -> Any:
    """Standard output of a command that must succeed, within 80 columns."""

    def run(*arguments: object) -> str:
        said = cli(*arguments)
        assert said.code == 0, said.err
        assert max(map(len, said.out.splitlines())) <= 80
        return str(said.out)

    return run


def test_models_spec_and_estimate(ask: Any, shown: Any, made: Any, at: list[object]) -> None:
    plan = Plan.load(made.directory / "plan")
    assert ask(*at, "models") == {"models": [{"name": "tiny", "versions": ["1"], "default_version": "1"}]}
    spec = ask(*at, "spec", "tiny")
    assert (spec["error_bound"], spec["labels"]) == (plan.error_bound, [str(k) for k in range(10)])
    assert spec["key_bytes"] > 0 and spec["input"]["batch"] >= 1
    estimate = ask(*at, "estimate", "tiny")
    assert estimate["predicted_ms"] > 0 and estimate["version"] == "1"
    for command in (("models",), ("spec", "tiny"), ("estimate", "tiny")):
        assert "tiny" in shown(*at, *command)


def test_predict_is_secateur_predict(
    ask: Any, shown: Any, made: Any, at: list[object], image: Path, images: Any
) -> None:
    answer = ask(*at, "predict", "tiny", image)
    short = ask("predict", "tiny", image, *at[1:])
    model, plan = CompressedModel.load(made.directory), Plan.load(made.directory / "plan")
    clear = run_clear(plan, normalize(model.input, images[:1]))[0]
    assert set(answer) == set(short) and answer["answer"] == short["answer"] == clear.argmax()
    assert short["uploaded_bytes"] == 0, "they share keys"
    assert shown(*at, "predict", "tiny", image).splitlines()[0] == str(clear.argmax())


def test_a_job_from_submit_to_result(ask: Any, shown: Any, refused: Any, at: list[object], image: Path) -> None:
    submitted = ask(*at, "submit", "tiny", image)
    name = submitted["job"]
    assert (len(name), submitted["model"], submitted["version"]) == (16, "tiny", "1")
    assert ask(*at, "watch", name)["state"] == "succeeded"
    assert "succeeded" in shown(*at, "watch", name).splitlines()[-1]
    result, direct = ask(*at, "result", name, "--wait", 30), ask(*at, "predict", "tiny", image)
    assert result["answer"] == direct["answer"]
    assert np.allclose(result["logits"], direct["logits"], atol=2 * direct["error_bound"])
    assert shown(*at, "result", name).splitlines()[0] == result["label"]
    assert ask(*at, "cancel", name)["state"] == "succeeded", "too late"
    assert "succeeded" in shown(*at, "cancel", name)
    assert [job["job"] for job in ask(*at, "jobs")["jobs"]] == [name] and name in shown(*at, "jobs")
    assert shown(*at, "submit", "tiny", image).strip() in {job["job"] for job in ask(*at, "jobs")["jobs"]}
    assert "cannot find the job" in refused(*at, "result", "0123456789abcdef")


def test_keys_are_listed_and_deleted(ask: Any, shown: Any, refused: Any, at: list[object], image: Path) -> None:
    before = ask(*at, "predict", "tiny", image)
    (keys,) = ask(*at, "keys", "list")["keys"]
    assert keys["here"] and keys["at_server"] and keys["total_bytes"] == before["key_bytes"]
    (_, _, row) = shown(*at, "keys", "list").splitlines()
    assert row.split()[2:4] == [keys["handle"][:12], "both"]
    assert "cannot delete keys" in refused(*at, "keys", "delete", "no such key")
    assert ask(*at, "keys", "delete", keys["params_digest"][:12])["deleted"] == [keys]
    assert ask(*at, "keys", "list") == {"keys": []} and ask(*at, "jobs") == {"jobs": []}
    assert ask(*at, "predict", "tiny", image)["uploaded_bytes"] == before["key_bytes"], "with new ones"


def test_bad_options_are_refused(refused: Any, cli: Any, at: list[object], image: Path) -> None:
    assert "127.0.0.1:1" in refused("client", "--server", "127.0.0.1:1", "--retries", 0, "models")
    assert cli(*at, "--client-key", image, "models").code == 2
    assert cli("client").code != 0
