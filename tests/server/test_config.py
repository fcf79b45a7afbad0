"""Configuration: typed, strict, and every error names the key. `check` finds problems without serving."""

from __future__ import annotations

import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from harness import make_config

from server.checks import check
from server.config import ServerConfig, _leaves, load_config
from server.errors import ConfigError
from server.models.checksums import write_list
from server.running import start


def load(tmp_path: Path, text: str, **environment: str) -> ServerConfig:
    path = tmp_path / "server.toml"
    path.write_text(text)
    return load_config(path, environment)


def test_a_file_sets_fields_and_paths_are_relative_to_it(tmp_path: Path) -> None:
    text = 'address = "0.0.0.0:7"\nmodels = "m"\n[engine]\nworkers = 3\n[limits]\nmax_evaluate_seconds = 5\n[tls]\ncertificate = "/c.pem"\n'
    config = load(tmp_path, text)
    assert (config.address, config.models, config.engine.workers) == ("0.0.0.0:7", tmp_path / "m", 3)
    assert config.limits.max_evaluate_seconds == 5.0 and config.tls.certificate == Path("/c.pem")
    assert config.keys == ServerConfig().keys


def test_the_environment_wins(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "[engine]\nworkers = 3\n",
        SECATEUR_SERVER_ENGINE_WORKERS="5",
        SECATEUR_SERVER_TLS_ENABLED="true",
        SECATEUR_SERVER_DRAIN_SECONDS="1.5",
        SECATEUR_SERVER_MODELS="/models",
        UNRELATED="x",
    )
    assert (config.engine.workers, config.tls.enabled, config.drain_seconds, config.models) == (
        5,
        True,
        1.5,
        Path("/models"),
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("worker = 1", "unknown key worker"),
        ("[engine]\nworkerz = 1", "unknown key engine.workerz"),
        ('[engine]\nworkers = "two"', "engine.workers is 'two', need a whole number"),
        ("[engine]\nworkers = true", "engine.workers is True"),
        ("[engine]\nworkers = 1.5", "engine.workers is 1.5"),
        ("[engine]\nworkers = 0", "workers = 0: need a positive"),
        ("[limits]\nmax_queue = -1", "max_queue = -1: need a non-negative"),
        ("[limits]\nmax_evaluate_seconds = nan", "max_evaluate_seconds = nan"),
        ("engine = 3", r"need a table \[engine\]"),
        ("models = 3", "models is 3, need a path"),
        ("[tls]\nenabled = 1", "tls.enabled is 1, need true or false"),
        ('address = "nowhere"', "address = 'nowhere': need host:port"),
        ('address = "h:99999"', "address = 'h:99999'"),
        ('log_level = "loud"', "log_level = 'loud': need one of"),
        ("= 1", "need a TOML file"),
    ],
)
def test_a_bad_file_is_named_by_key(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("SECATEUR_SERVER_ENGINE_WORKERZ", "1", "SECATEUR_SERVER_ENGINE_WORKERZ: no such setting"),
        ("SECATEUR_SERVER_ENGINE_WORKERS", "two", r"\(SECATEUR_SERVER_ENGINE_WORKERS\): engine.workers is 'two'"),
        ("SECATEUR_SERVER_TLS_ENABLED", "maybe", "need true or false"),
    ],
)
def test_a_bad_environment_is_named_by_variable(tmp_path: Path, variable: str, value: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load(tmp_path, "", **{variable: value})


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load_config(tmp_path / "absent.toml", {})


def test_check_accepts_what_serves_and_names_a_broken_version(tmp_path: Path) -> None:
    assert [p.split(":")[0] for p in check(make_config(tmp_path))] == ["digits version 11"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"models": Path("/absent")}, "models = /absent"),
        ({"state": Path("/proc/1/state")}, "state = /proc/1/state"),
        ({"address": "203.0.113.1:1"}, "address = 203.0.113.1:1"),
    ],
)
def test_check_names_every_problem(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    assert any(named in p for p in check(replace(make_config(tmp_path), **changes)))


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"engine": {"runtime": "no.such.module"}}, "engine.runtime = 'no.such.module'"),
        ({"engine": {"runtime": "json"}}, "it lacks problems, describe, estimate, build, wire_version"),
        ({"engine": {"cost_table": Path("/absent.json")}}, "engine.cost_table = /absent.json"),
        ({"tls": {"enabled": True}}, "tls.certificate is not set"),
        ({"tls": {"certificate": Path("/c.pem")}}, "tls.enabled is false"),
        ({"limits": {"max_chunk_bytes": 1 << 30}}, "limits.max_chunk_bytes"),
        ({"keys": {"budget_bytes": 1 << 20}}, "limits.max_upload_bytes"),
    ],
)
def test_check_names_problems_of_sections(tmp_path: Path, sections: dict[str, dict[str, object]], named: str) -> None:
    assert any(named in p for p in check(make_config(tmp_path, **sections)))


def test_check_looks_at_checksums_as_the_server_would(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    version = config.models / "digits" / "10"
    write_list(version)
    (version / "extra").write_text("")
    assert any("'extra'" in p for p in check(config))
    required = make_config(tmp_path, repository={"require_checksums": True})
    assert sum("require_checksums" in p for p in check(required)) == 3, "of the versions without a list"


@pytest.mark.parametrize("text", ["99", "x"])
def test_check_refuses_a_state_of_another_build(tmp_path: Path, text: str) -> None:
    config = make_config(tmp_path)
    config.state.mkdir()
    (config.state / "VERSION").write_text(text)
    assert any("state = " in p for p in check(config))


def test_check_looks_at_every_address(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = make_config(tmp_path, admin={"address": address}, tls={"mutual_address": address})
        problems = check(config)
    assert all(any(f"{name} = {address}" in p for p in problems) for name in ("admin.address", "tls.mutual_address"))
    nowhere = make_config(tmp_path, admin={"address": "unix:/absent/admin.sock"})
    assert any("admin.address" in p and "cannot write to /absent" in p for p in check(nowhere))
    with pytest.raises(ConfigError, match=r"admin\.address = 'nowhere'"):
        make_config(tmp_path, admin={"address": "nowhere"})


def test_a_port_in_use_is_a_config_error_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = replace(make_config(tmp_path), address=f"127.0.0.1:{taken.getsockname()[1]}")
        assert any("address" in p for p in check(config))
        with pytest.raises(ConfigError, match="cannot listen on address"):
            start(config)


def test_a_runtime_that_a_worker_cannot_run_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        start(replace(make_config(tmp_path), models=tmp_path / "absent"))


EXAMPLE = Path(__file__).parents[2] / "docs" / "secateur-server.toml"


def test_the_example_configuration_changes_nothing() -> None:
    assert load_config(EXAMPLE, {}) == ServerConfig()


def test_the_example_configuration_names_every_setting_with_its_default(tmp_path: Path) -> None:
    """Whoever adds a setting adds its line to docs/secateur-server.toml."""
    text = re.sub(r"^#(?=[a-z_]+ = )", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    (tmp_path / "server.toml").write_text(text)
    record = tomllib.loads(text)
    uncommented = load_config(tmp_path / "server.toml", {})
    for name, default in _leaves(ServerConfig()):
        section, _, key = name.rpartition(".")
        if isinstance(default, Mapping):
            assert f"# [{name}." in text, f"need an example of [{name}.NAME]"
            continue
        assert key in (record[section] if section else record), f"need a line #{key} = {default!r} in [{section}]"
        got = getattr(getattr(uncommented, section), key) if section else getattr(uncommented, key)
        if isinstance(got, Path):
            got = None if default is None else got.relative_to(tmp_path)
        assert got == default or name == "engine.backend", f"{name}: need the default {default!r}"
