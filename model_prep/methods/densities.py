"""The kept share of each layer, as methods that prune layer by layer read it from their settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from he_runtime.errors import ModelError

from ..graph import Graph, weight_keys
from ..settings import require

__all__ = ["layer_densities", "need_densities", "reached_density"]


class _Densities(Protocol):
    @property
    def density(self) -> float: ...

    @property
    def layers(self) -> Mapping[str, float]: ...


def need_densities(settings: _Densities) -> None:
    """ModelError where a method's `density`, or that of one of its `layers`, is not in (0, 1]."""
    shares = (settings.density, *settings.layers.values())
    require(all(0 < d <= 1 for d in shares), settings, "densities in (0, 1] for density and layers")


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
