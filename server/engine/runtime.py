"""What the server needs of a runtime: the module named by `engine.runtime` has these three functions.

`describe` and `estimate` run in the front door and touch only the operator's own files; `build` runs in a worker and
returns the object that parses strangers' bytes. `server.engine.he_model` is the real one; tests bring a fake without an HE library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from protos.native import LayerEstimate

from ..errors import ConfigError

__all__ = ["OPERANDS", "Cost", "LoadedKeys", "ModelDescription", "Runtime", "WorkerModel", "load_runtime"]


OPERANDS = (
    "SECATEUR_OPERANDS"  # a worker's variable: private directory where `build` may share memory with other workers
)


@dataclass(frozen=True)
class ModelDescription:
    """A model version as the front door knows it, with bounds on an upload of its keys and on the ciphertexts of a request."""

    name: str
    version: str
    directory: Path
    client_spec: bytes = field(repr=False)
    client_spec_digest: str
    params_digest: str
    model_digest: str
    plan_digest: str
    max_key_bytes: int
    max_request_bytes: int
    families: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)  # layer -> family


@dataclass(frozen=True)
class Cost:
    """Predicted evaluation time and its bounds, in all and per layer, sizes of one request, counts of the plan and of the
    dense network, a worker's memory in bytes, the number of keys, levels left in the reply, and the error bound."""

    predicted_ms: float
    low_ms: float
    high_ms: float
    confidence: str
    up_bytes: int
    down_bytes: int
    key_bytes: int
    counts: Mapping[str, int]
    dense_counts: Mapping[str, int]
    table_name: str
    layers: tuple[LayerEstimate, ...] = ()
    peak_bytes: int = 0
    keys: int = 0
    levels_left: int = 0
    error_bound: float = 0.0


class LoadedKeys(Protocol):
    """Keys in a worker's memory, opaque but for their size."""

    @property
    def byte_size(self) -> int: ...


class WorkerModel(Protocol):
    """A model version in a worker. Every method raises errors of he_runtime's tree for bad bytes."""

    def load_keys(self, path: Path, check: Callable[[], None]) -> LoadedKeys:
        """Parse and check a key-set file against the plan. `check` is called between any two keys and may raise."""

    def run(
        self, ciphertexts: bytes, keys: Any, check: Callable[[], None], on_layer: Callable[[str], None]
    ) -> tuple[bytes, Mapping[str, int]]:
        """(reply bytes, operations executed). `check` is called between any two HE operations and may raise.

        `on_layer` is called with the name of the layer whose operations begin; a name may come more than once. Where
        it has an `operation`, that is called with (operations done, planned) as each begins; a model whose
        `layers` are a mapping, in the order of the estimate's, from name to number of operations lets the front door
        tell which one is under way, and how far.
        """


class Runtime(Protocol):
    """The module behind `engine.runtime`.

    Where it has a function `release`, a worker calls it after it has dropped keys that were deleted.
    """

    def problems(self, backend: str) -> list[str]:
        """Why no worker could evaluate with this back end; empty when one can."""

    def describe(self, directory: Path, name: str, version: str) -> ModelDescription: ...

    def estimate(self, model: ModelDescription, backend: str, cost_table: Path | None) -> Cost: ...

    def build(self, directory: Path, backend: str) -> WorkerModel: ...

    def wire_version(self) -> int: ...


def load_runtime(name: str) -> Runtime:
    """Import the module `name`; ConfigError when it is absent or lacks a function."""
    try:
        module = import_module(name)
    except ImportError as error:
        raise ConfigError(f"cannot use engine.runtime = {name!r}: {error}; need an importable module") from error
    missing = [
        f
        for f in ("problems", "describe", "estimate", "build", "wire_version")
        if not callable(getattr(module, f, None))
    ]
    if missing:
        raise ConfigError(f"cannot use engine.runtime = {name!r}: it lacks {', '.join(missing)}")
    return cast(Runtime, module)
