"""Bad input on the command line: one clear line that says what was got, what is needed or what to try."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest


def test_an_unknown_recipe_names_those_there_are(refused: Any) -> None:
    for command in (["compress"], ["demo", "--recipe"], ["bench", "accuracy", "--recipe"]):
        line = refused(*command, "nope")
        assert "'nope'" in line and "digits-cnn" in line and "mnist-lola" in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = 'x'\n[teacher\n", "line 2"),
        ("network = 'digits-mlp'", "need a name"),
        ("name = 'x'\nnetwork = 'nope'", "digits-mlp"),
        ("name = 'x'\nnetwork = 'digits-mlp'\nspeed = 3", "speed"),
        ("name = 'x'\nnetwork = 'digits-mlp'\ndataset = 'nope'", "digits-upscaled"),
        (
            "name = 'x'\nnetwork = 'digits-mlp'\n[[steps]]\nmethod = 'magnitude'\ndensity = 2.0",
            "need density in (0, 1]",
        ),
        ("name = '../x'\nnetwork = 'digits-mlp'", "'../x'"),
        ("name = 'x'", "names no network"),
    ],
    ids=["syntax", "no name", "unknown network", "unknown key", "unknown data", "value", "path", "no network"],
)
def test_a_bad_recipe(text: str, says: str, refused: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(text)
    assert says in refused("compress", tmp_path / "bad.toml")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("version", ["../2", "", ".", "a/b"])
def test_a_version_that_no_server_would_serve(version: str, refused: Any, recipe: Path) -> None:
    assert f"cannot name a model or version {version!r}" in refused("compress", recipe, "--version", version)


@pytest.mark.parametrize("long", ["x" * 5000, "x" * 5000 + ".toml", "d/" * 2500])
def test_a_name_that_is_too_long(long: str, refused: Any, recipe: Path, tmp_path: Path) -> None:
    line = refused("compress", long)
    assert line.startswith("error: cannot find recipe '") and "File name too long" in line and "digits-cnn" in line
    (tmp_path / "long.toml").write_text(f"name = '{long}'\nnetwork = 'digits-mlp'")
    lines = (
        line,
        refused("compress", tmp_path / "long.toml"),
        refused("compress", recipe, "--version", long),
        refused("compress", recipe, "--out", long),
    )
    assert all(long[:50] in line and long[:100] not in line for line in lines), lines


def test_a_recipe_in_a_place_that_may_not_be_read(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", forbidden)
    line = refused("compress", "private/x.toml")
    assert "cannot find recipe 'private/x.toml': got Permission denied, need a TOML file or one of" in line


@pytest.mark.parametrize(
    ("file", "out", "says"),
    [
        ("f", "f", "Not a directory"),
        ("f", "f/models", "Not a directory"),
        ("m/.tiny-1.unfinished", "m", "cannot write into m/.tiny-1.unfinished: got File exists"),
        ("m/tiny", "m", "cannot write into m/tiny: got File exists"),
    ],
)
def test_an_out_that_cannot_be_written(
    file: str, out: str, says: str, refused: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before anything is trained, and with nothing made."""
    monkeypatch.setattr("secateur.compress.run_recipe", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    before = sorted(tmp_path.rglob("*"))
    line = refused("compress", recipe, "--out", out)
    assert line.startswith(f"error: cannot write into {out}/") and says in line and "try another --out" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("closed", ["models", "models/tiny"])
def test_an_out_in_which_one_may_not_write(
    closed: str, refused: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root may write anywhere, the refusal of the operating system is played."""
    made = tempfile.TemporaryFile

    def forbidden(*, dir: Path) -> Any:
        if dir.parent == Path(closed) or dir == Path(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(dir / "tmp1234"))
        return made(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", forbidden)
    monkeypatch.setattr("secateur.compress.run_recipe", lambda *_, **__: pytest.fail("trained"))
    line = refused("compress", recipe)
    assert line.startswith(f"error: cannot write into {closed}") and "got Permission denied" in line
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("reference", "says"), [("nope", "need package.module:factory"), ("os:getcwd", "need a torch.nn.Module")]
)
def test_a_module_that_is_none(reference: str, says: str, refused: Any, recipe: Path) -> None:
    assert says in refused("compress", recipe, "--module", reference)


@pytest.mark.parametrize("command", ["plan", "estimate", "calibrate"])
def test_a_missing_model_directory(command: str, refused: Any) -> None:
    line = refused(command, "nowhere")
    assert "nowhere" in line and "need manifest.json" in line and "try `secateur compress`" in line


def reseal(directory: Path, structure: str, arrays: str, change: Any) -> None:
    """Change a stored record and give the directory a digest that fits it."""
    record = json.loads((directory / structure).read_text())
    change(record)
    (directory / structure).write_text(json.dumps(record))
    hasher = hashlib.sha256()
    for name in (structure, arrays):
        data = (directory / name).read_bytes()
        hasher.update(len(data).to_bytes(8, "little") + data)
    (directory / "DIGEST").write_text(hasher.hexdigest() + "\n")


def test_a_format_of_another_version(made: Any, refused: Any, cli: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(made.models, tmp_path / "models") / "tiny" / "1"
    (copy / "SHA256SUMS").unlink()
    reseal(copy / "plan", "plan.json", "vectors.safetensors", lambda r: r.update(version=99))
    for command in (["plan", copy / "plan"], ["estimate", copy], ["calibrate", copy]):
        line = refused(*command)
        assert "version 99" in line and "this build reads" in line and "try planning the model again" in line
    said = cli("serve", "--models", tmp_path / "models", "--address", "127.0.0.1:0", "--check", "--json")
    assert said.code == 1
    assert any("version 99" in problem for problem in json.loads(said.out)["problems"])
    reseal(copy, "manifest.json", "arrays.safetensors", lambda r: r.update(version=99))
    assert "version 99" in refused("plan", copy)


def test_an_altered_model_and_plan(made: Any, refused: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(made.directory, tmp_path / "1")
    with (copy / "plan" / "plan.json").open("a") as file:
        file.write(" ")
    assert "do not match DIGEST" in refused("estimate", copy)
    with (copy / "manifest.json").open("a") as file:
        file.write(" ")
    assert "do not match DIGEST" in refused("plan", copy)


def test_a_plan_that_cannot_be(made: Any, refused: Any) -> None:
    assert "4096, 8192" in refused("plan", made.directory, "--degree", 3)
    assert "positive" in refused("plan", made.directory, "--max-error", "nan")
    assert "no ring degree" in refused("plan", made.directory, "--max-error", 1e-12)
    assert "it is a plan" in refused("plan", made.directory / "plan", "--degree", 8192)


def test_a_plan_that_needs_too_much_memory(made: Any, refused: Any, ask: Any) -> None:
    for batch in ([], ["--batch", 2]):
        line = refused("plan", made.directory, "--max-memory", 10, *batch)
        found = re.search(r"need (\d+) MB at N=\d+, \d+ MB missing; .* layer '(\w+)'; try a limit of (\d+) MB", line)
        assert found is not None, line
    record = ask("plan", made.directory, "--max-memory", found[3])
    assert record["cost"]["peak_bytes"] <= int(found[3]) * 10**6
    assert "positive" in refused("plan", made.directory, "--max-memory", 0)


def test_a_cost_table_that_is_none(made: Any, refused: Any, tmp_path: Path) -> None:
    assert "nope" in refused("estimate", made.directory, "--backend", "nope")
    assert "absent.json" in refused("estimate", made.directory, "--table", "absent.json")
    (tmp_path / "table.json").write_text("{}")
    assert "try calibrating" in refused("estimate", made.directory, "--table", "table.json")


def test_a_measurement_that_cannot_be(made: Any, refused: Any) -> None:
    assert "tenseal" in refused("calibrate", made.directory, "--backend", "nope")
    assert "positive time" in refused("calibrate", made.directory, "--seconds", -1)
    networks = refused("bench", "latency", "--network", "nope")
    assert "nope" in networks and "digits-cnn" in networks and "mnist-lenet" in networks
    assert "need one of 0 to 359" in refused("demo", "--image", 100000)


def test_workers_on_a_ray_that_is_not_installed(made: Any, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    for check in ([], ["--check"]):
        line = refused("serve", "--models", made.models, "--address", "127.0.0.1:0", "--workers", "ray:2", *check)
        assert "Ray Serve is not installed; try pip install 'secateur[ray]'" in line


def test_a_service_that_cannot_be(made: Any, refused: Any, tmp_path: Path) -> None:
    assert "nowhere" in refused("serve", "--models", "nowhere", "--address", "127.0.0.1:0")
    models = ("--models", made.models, "--address", "127.0.0.1:0")
    assert "need one of tenseal" in refused("serve", *models, "--backend", "nope")
    assert "engine.workers" in refused("serve", *models, "--workers", 0)
    assert "engine.workers" in refused("serve", *models, "--workers", "ray:0")
    for text in ("rays", "ray:", "ray:-1", "two", "-1", "1.5", "ray:ray", "٣", ""):
        assert "need a number, ray, or ray:N" in refused("serve", *models, "--workers", text)
    assert "certificate" in refused("serve", *models, "--certificate", "absent.pem")
    assert "host:port" in refused("serve", "--models", made.models, "--address", "nonsense")
    (tmp_path / "server.toml").write_text("[limits\n")
    assert "server.toml" in refused("serve", "--config", tmp_path / "server.toml")
    (tmp_path / "server.toml").write_text("[limits]\nmax_lies = 3\n")
    assert "limits.max_lies" in refused("serve", "--config", tmp_path / "server.toml")


@pytest.mark.parametrize(
    "arguments",
    [["nope"], ["plan"], ["demo", "--bogus"], ["demo", "--image", "-1"], ["compress", "x", "--data", "nowhere"]],
)
def test_a_wrong_usage(arguments: list[str], cli: Any) -> None:
    said = cli(*arguments)
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("Usage: ") and "Traceback" not in said.err


def test_an_unexpected_error_is_one_line_too(
    refused: Any, cli: Any, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret value")

    monkeypatch.setattr("he_runtime.CompressedModel.load", broken)
    line = refused("plan", made.directory)
    assert "ZeroDivisionError" in line and "SECATEUR_TRACEBACK=1" in line and "secret" not in line
    monkeypatch.setenv("SECATEUR_TRACEBACK", "1")
    assert cli("plan", made.directory).err == "", "the error itself is passed on, for its traceback"


@pytest.mark.parametrize(("module", "extra"), [("torch.nn", "prep"), ("grpc", "client"), ("grpc_health.v1", "server")])
def test_a_library_that_is_not_installed(
    module: str, extra: str, refused: Any, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(name=module)

    monkeypatch.setattr("he_runtime.CompressedModel.load", missing)
    assert f"try pip install 'secateur[{extra}]'" in refused("plan", made.directory)
