"""Where workers run: on this machine, or in a Ray cluster. What keeps a configuration from either."""

from __future__ import annotations

import importlib.util
import os

from ..config import EngineConfig

__all__ = ["WORKERS_BACKENDS", "problems"]

WORKERS_BACKENDS = ("local", "ray")


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
