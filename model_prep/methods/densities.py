"""The kept share of each layer, as methods that prune layer by layer read it from their settings."""

from __future__ import annotations

from collections.abc import Mapping

from he_runtime.errors import ModelError

from ..graph import Graph, weight_keys

__all__ = ["layer_densities", "reached_density"]


def layer_densities(graph: Graph, density: float, layers: Mapping[str, float]) -> dict[str, float]:
    """Weight array -> kept share: `layers` by node name, `density` elsewhere. ModelError on a name that is no layer."""
    names = weight_keys(graph)
    unknown = sorted(set(layers) - set(names.values()))
    if unknown:
        raise ModelError(f"cannot prune layers {unknown}: need some of {sorted(names.values())}")
    return {key: layers.get(name, density) for key, name in names.items()}


def reached_density(final: float, share: float) -> float:
    """The density of the moment, at a share in [0, 1] of the final sparsity."""
    return 1.0 - (1.0 - final) * share
