"""Where workers run: on this machine, or in a Ray cluster. What keeps a configuration from either."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import replace

from ..config import EngineConfig
from ..errors import ConfigError

__all__ = ["WORKERS_BACKENDS", "problems", "with_workers"]

WORKERS_BACKENDS = ("local", "ray")
_WORKERS = re.compile(r"(?P<count>[0-9]{1,9})|(?P<backend>ray)(?::(?P<replicas>[0-9]{1,9}))?")


def with_workers(engine: EngineConfig, text: str) -> EngineConfig:
    """What `secateur serve --workers` asks for: a number of whatever workers are configured, `ray` for as many replicas of
    Ray Serve as are configured, or `ray:N` for N of them. ConfigError for anything else.
    """
    found = _WORKERS.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"cannot use --workers {text[:40]!r}: need a number, ray, or ray:N for N replicas of Ray Serve; try --workers 2"
        )
    count = int(found["count"] or found["replicas"] or engine.workers)
    return replace(engine, workers=count, workers_backend=found["backend"] or engine.workers_backend)


def problems(engine: EngineConfig) -> list[str]:
    """A sentence for each; empty when workers can be had."""
    if engine.workers_backend not in WORKERS_BACKENDS:
        return [
            f"cannot use engine.workers_backend = {engine.workers_backend!r}: need one of {', '.join(WORKERS_BACKENDS)}"
        ]
    if engine.workers_backend == "local":
        return []
    found = []
    # To look for ray.serve would import ray, which reads whether to ask for a token when it is imported: too early.
    if any(importlib.util.find_spec(name) is None for name in ("ray", "fastapi")):
        found.append(
            "cannot use engine.workers_backend = 'ray': Ray Serve is not installed; try pip install 'secateur[ray]'"
        )
    if engine.ray_address and os.environ.get("RAY_AUTH_MODE") != "token":
        # Whoever reaches a cluster without it runs any code there.
        found.append(
            f"cannot use engine.ray_address = {engine.ray_address!r}: got RAY_AUTH_MODE="
            f"{os.environ.get('RAY_AUTH_MODE', '')!r}, need token, here and in the cluster"
        )
    return found
