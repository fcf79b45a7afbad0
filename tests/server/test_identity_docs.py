"""The commands in docs/operating.md make certificates that the server and a client accept."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from authority import Authority
from harness import make_config

from protos.gen.secateur.v1 import model_pb2, model_pb2_grpc
from server.config import load_config
from server.identity.certificates import of_certificate
from server.identity.settings import IdentityConfig, TlsConfig
from server.running import start

TEXT = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the commands are openssl's")
def test_the_commands_make_an_authority_a_server_and_a_client(tmp_path: Path) -> None:
    (commands,) = re.findall(r"```sh\n(openssl req.*?)```", TEXT, re.DOTALL)
    subprocess.run(["bash", "-e", "-c", commands], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    tls = TlsConfig(True, tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "ca.pem", "required")
    config = replace(make_config(tmp_path, engine={"preload": False}), tls=tls, identity=IdentityConfig("mtls"))
    ca, key, chain = ((tmp_path / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem"))
    shown = of_certificate({"x509_pem_cert": [chain]}, config.identity)
    assert shown and (shown.tenant, shown.subject) == ("acme", "laptop")
    with start(config) as server:
        port = server.address.rpartition(":")[2]
        for address in (f"localhost:{port}", f"127.0.0.1:{port}"):
            with grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, chain)) as line:
                stub = model_pb2_grpc.ModelServiceStub(line)
                assert stub.ListModels(model_pb2.ListModelsRequest(), timeout=10).models


@pytest.mark.parametrize("section", ["tls", "identity", "jwt", "audit"])
def test_the_settings_shown_are_settings(tmp_path: Path, section: str) -> None:
    blocks = [b for b in re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL) if f"[{section}]" in b]
    assert blocks
    for block in blocks:
        (tmp_path / "server.toml").write_text(block)
        load_config(tmp_path / "server.toml", {})


def run(*arguments: str) -> tuple[int, str]:
    from typer.testing import CliRunner

    from secateur.main import app

    result = CliRunner().invoke(app, [*arguments])
    return result.exit_code, result.output


def test_serve_checks_identity_and_predict_wants_whole_pairs(tmp_path: Path) -> None:
    make_config(tmp_path)
    shutil.rmtree(tmp_path / "models" / "digits" / "11")  # the broken one
    ours = Authority()
    certificate, key = (str(path) for path in ours.issue_server().write(tmp_path, "server"))
    (tmp_path / "ca.pem").write_bytes(ours.pem)
    (tmp_path / "server.toml").write_text(
        'address = "127.0.0.1:0"\nmodels = "models"\n[engine]\nbackend = "fake"\nruntime = "fake_runtime"\n'
    )
    serve = ("serve", "--config", str(tmp_path / "server.toml"), "--check", "--json")
    secured = (*serve, "--certificate", certificate, "--private-key", key, "--client-ca", str(tmp_path / "ca.pem"))
    code, said = run(*secured)
    assert code == 0 and json.loads(said)["problems"] == []
    assert run(*serve, "--client-ca", str(tmp_path / "ca.pem"))[0] == 1, "without TLS"
    code, said = run(*serve, "--address", "0.0.0.0:0")
    assert code == 1 and "identity.anonymous_on_network" in said
    (tmp_path / "x.json").write_text("[1]")
    code, said = run("predict", "m", str(tmp_path / "x.json"), "--client-certificate", certificate)
    assert code == 2 and "go together" in said
    code, said = run("predict", "m", str(tmp_path / "x.json"), "--token-file", str(tmp_path / "absent"))
    assert code == 1 and "cannot read the token" in said
