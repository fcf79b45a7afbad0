"""The committed generated code is what the .proto files give, and is never importable as `secateur`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from protos import generate

ROOT = Path(generate.__file__).resolve().parent


@pytest.fixture(scope="module")
def fresh() -> dict[str, str]:
    return generate.generate()


def test_committed_code_is_fresh(fresh: dict[str, str]) -> None:
    assert generate.stale(fresh) == []


def test_the_compiler_stays_out_of_this_process(fresh: dict[str, str]) -> None:
    """Once it is loaded, tenseal crashes."""
    assert fresh and "grpc_tools._protoc_compiler" not in sys.modules


def test_a_change_is_noticed(fresh: dict[str, str]) -> None:
    changed = {**fresh, "secateur/v1/keys_pb2.py": "x", "secateur/v1/new_pb2.py": "y"}
    del changed["secateur/v1/model_pb2.py"]
    assert generate.stale(changed) == ["secateur/v1/keys_pb2.py", "secateur/v1/model_pb2.py", "secateur/v1/new_pb2.py"]


def test_check_fails_on_a_stale_tree(tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "protos")
    proto = tmp_path / "protos/secateur/v1/keys.proto"
    proto.write_text(
        proto.read_text().replace(
            "message DeleteKeySetResponse {}", "message DeleteKeySetResponse { bool was_there = 1; }"
        )
    )
    command = [sys.executable, "-m", "protos.generate", "--check"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "keys_pb2.py" in result.stderr


def test_generated_imports_name_the_gen_package(fresh: dict[str, str]) -> None:
    for name, text in fresh.items():
        assert "from secateur" not in text and "import secateur" not in text, name
