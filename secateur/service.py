"""A service on loopback for the length of a command: the server in a process of its own, TLS, a client that pins it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .output import progress_bytes, say

if TYPE_CHECKING:
    from client import Client
    from he_runtime import CompressedModel, Plan

__all__ = ["served"]

_CONFIG = """
address = "127.0.0.1:0"
models = "models"
state = "state"
drain_seconds = 2.0
log_level = "warning"

[tls]
enabled = true
certificate = "tls/{certificate}"
private_key = "tls/{private_key}"

[engine]
backend = "{backend}"
"""


@contextmanager
def served(model: CompressedModel, planned: Plan, backend: str | None = None) -> Iterator[Client]:
    """A connected client whose keys for `model` are uploaded; server, keys and certificate are gone afterwards."""
    import server
    from client import Client
    from he_runtime.backends import default_backend

    from .artifacts import PLAN

    with tempfile.TemporaryDirectory(prefix="secateur-") as name:
        root = Path(name)
        planned.save(model.save(root / "models" / model.name / "1") / PLAN)
        certificate, private_key = server.make_self_signed(root / "tls")
        config = root / "server.toml"
        config.write_text(
            _CONFIG.format(
                certificate=certificate.name, private_key=private_key.name, backend=backend or default_backend()
            )
        )
        say("serving with TLS on loopback ...")
        with (
            server.start_subprocess(config) as running,
            Client.connect(running.address, certificate=certificate, home=root / "client") as client,
        ):
            with progress_bytes("uploading keys") as progress:
                client.prepare(model.name, progress=progress)
            yield client
