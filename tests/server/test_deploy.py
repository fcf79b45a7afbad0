"""Manifests as far as they can be read without a cluster: they parse, agree with each other, and name settings that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import Caller

from server.config import ServerConfig, load_config
from server.identity.problems import identity_problems
from server.running import RunningServer

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "secateur"
_WHOLE_LINE = re.compile(r"^\s*\{\{-?.*\}\}\s*$")
_KEPT = re.compile(r"\{\{-?\s*\.Values\.([\w.]+)\s*\}\}")


def values() -> dict[str, Any]:
    return dict(yaml.safe_load((CHART / "values.yaml").read_text()))


def looked_up(path: str) -> Any:
    found: Any = values()
    for name in path.split("."):
        found = found[name]
    return found


def template(name: str) -> list[dict[str, Any]]:
    """A template with plain values filled in, and whatever else the template language does left out."""
    lines = [line for line in (CHART / "templates" / name).read_text().splitlines() if not _WHOLE_LINE.match(line)]
    text = _KEPT.sub(lambda found: str(looked_up(found[1])), "\n".join(lines))
    return [dict(d) for d in yaml.safe_load_all(re.sub(r"\{\{.*?\}\}", "x", text))]


def written(tmp_path: Path, toml: str) -> ServerConfig:
    (tmp_path / "server.toml").write_text(toml)
    return load_config(tmp_path / "server.toml", {})


TEMPLATES = sorted(path.name for path in (CHART / "templates").glob("*.yaml"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_objects_and_name_values_that_exist(name: str) -> None:
    text = (CHART / "templates" / name).read_text()
    for path in re.findall(r"\.Values\.([\w.]+)", text):
        looked_up(path)
    opened = len(re.findall(r"\{\{-? (?:if|with|range) ", text))
    assert opened == len(re.findall(r"\{\{-? end ", text))
    for manifest in template(name):
        assert {"apiVersion", "kind", "metadata"} <= set(manifest)


def test_the_charts_configuration_is_one_that_serves_safely(tmp_path: Path) -> None:
    config = written(tmp_path, values()["config"])
    assert identity_problems(config) == []
    assert config.tls.enabled and config.identity.mode == "jwt"
    assert config.drain_seconds < values()["terminationGracePeriodSeconds"]
    assert config.address.endswith(f":{values()['service']['port']}")
    assert config.metrics.address.endswith(f":{values()['metrics']['port']}")


def test_the_charts_mounts_hold_what_its_configuration_names(tmp_path: Path) -> None:
    config = written(tmp_path, values()["config"])
    (deployment,) = template("deployment.yaml")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {m["name"] for m in mounts.values()} == {volume["name"] for volume in pod["volumes"]}
    named = (config.models, config.state, config.tls.certificate, config.tls.private_key, config.jwt.keys)
    for path in named:
        assert path is not None and any(str(path).startswith(mount) for mount in mounts), path
    assert not mounts["/state"].get("readOnly") and mounts["/models"]["readOnly"]
    secure = container["securityContext"]
    assert secure["readOnlyRootFilesystem"] and secure["capabilities"] == {"drop": ["ALL"]}
    assert pod["securityContext"]["runAsNonRoot"] and deployment["spec"]["strategy"]["type"] == "Recreate"


def test_the_image_agrees_with_the_chart(tmp_path: Path) -> None:
    dockerfile = (DEPLOY / "docker" / "Dockerfile").read_text()
    (deployment,) = template("deployment.yaml")
    user = deployment["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"USER {user}:{user}" in dockerfile
    assert f"EXPOSE {values()['service']['port']} {values()['metrics']['port']}" in dockerfile
    assert dockerfile.count("\nFROM ") == 2 and "SECATEUR_REQUIRE_KERNEL=1" in dockerfile
    config = written(tmp_path, (DEPLOY / "docker" / "server.toml").read_text())
    assert identity_problems(config) == []
    allowed = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().split()
    assert "*" in allowed
    for name in (line[1:] for line in allowed if line.startswith("!")):
        assert (DEPLOY.parent / name).exists(), name


def test_probes_ask_what_the_server_answers(shared: tuple[RunningServer, Caller]) -> None:
    (deployment,) = template("deployment.yaml")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = container[probe]["exec"]["command"]
        assert command[:3] == ["python", "-m", "server.scale.health"] and command[3].endswith(":50051")
        assert command[4:6] == ["--ca", "/tls/ca.crt"]  # beside the certificate, as the secret's kind has it
    service = command[command.index("--service") + 1]

    def probed(*arguments: str) -> int:
        return subprocess.run([sys.executable, "-m", "server.scale.health", *arguments], capture_output=True).returncode

    address = shared[0].address
    assert probed(address) == probed(address, "--service", service) == 0
    assert probed(address, "--service", "model/nobody") == probed("127.0.0.1:1", "--seconds", "1") == 1


def test_the_ray_cluster_asks_for_a_token_and_runs_the_same_image(tmp_path: Path) -> None:
    config_map, service, cluster, policy = yaml.safe_load_all((DEPLOY / "kuberay" / "raycluster.yaml").read_text())
    config = written(tmp_path, config_map["data"]["server.toml"])
    assert config.engine.workers_backend == "ray" and config.engine.ray_address == "auto"
    assert identity_problems(config) == []
    spec = cluster["spec"]
    assert policy["spec"]["podSelector"]["matchLabels"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert spec["authOptions"] == {"mode": "token"}
    (group,) = spec["workerGroupSpecs"]
    pods = [spec["headGroupSpec"]["template"]["spec"], group["template"]["spec"]]
    images = {container["image"] for pod in pods for container in pod["containers"]}
    assert len(images) == 1
    for pod in pods:
        (container,) = pod["containers"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/models", "/state"} <= mounts, "workers read what the front door names, at the same paths"
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    cpus = int(group["rayStartParams"]["num-cpus"])
    assert config.engine.workers * config.engine.threads <= cpus * group["replicas"]
    assert service["spec"]["ports"][0]["port"] == int(config.address.rpartition(":")[2])
