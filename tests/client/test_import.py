"""`import client` is cheap: no torch, and neither an HE library nor gRPC before a client is made."""

from __future__ import annotations

import subprocess
import sys

import pytest

import client


def _loaded(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sorted(m.partition('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = _loaded("import client")
    assert not loaded & {"torch", "tenseal", "grpc", "google", "numpy", "protos", "he_runtime"}


def test_the_client_itself_loads_no_torch_and_no_he_library() -> None:
    loaded = _loaded("from client import Client")
    assert "grpc" in loaded
    assert not loaded & {"torch", "tenseal", "_sealapi_cpp", "Pyfhel", "server", "model_prep", "sklearn"}


def test_every_public_name_resolves() -> None:
    assert {getattr(client, name).__name__ for name in client.__all__} == set(client.__all__)
    assert set(dir(client)) == set(client.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        client.nothing  # noqa: B018
