"""What `secateur bench mnist` lets run in turn on one network: our back ends, TenSEAL's own interface, and Orion."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .kernel_threads import use_threads
from .output import say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from he_runtime import CompressedModel, Plan

    from .local import Local

    Floats = npt.NDArray[np.float64]

__all__ = ["BACKENDS", "NAMES", "Contenders", "cores", "plan_for", "why_unavailable"]

BACKENDS = ("native", "tenseal")
_ERROR = 0.03  # of the largest output, for the error bound; what 20 images show is less than half of it
NAMES = ("native", "native_1thread", "tenseal_backend", "tenseal_api", "orion")
_Run = Callable[[int], "tuple[float, Floats]"]  # image -> seconds from encrypted input to encrypted output, logits


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def why_unavailable(backend: str) -> str | None:
    """Why `backend` cannot run here, or None. Nothing is evaluated."""
    import importlib

    from he_runtime import backends, kernel

    if backend not in backends.BACKENDS:
        return f"cannot use back end {backend!r}: this version has {', '.join(backends.BACKENDS)}"
    if backend == "native" and not (found := kernel.status()).available:
        return f"cannot use back end 'native': {found.reason}; try {found.remedy or 'another'}"
    try:
        importlib.import_module(backends.BACKENDS[backend][0], backends.__name__)
    except ImportError as error:
        return f"cannot use back end {backend!r}: {error}"
    return None


def plan_for(model: CompressedModel, backend: str) -> Plan:
    """The plan that `backend` runs fastest, by the cost table shipped for it where there is one.

    The bound on its error is at most three hundredths of the largest output that calibration saw.
    """
    from he_runtime import compile
    from he_runtime.cost import load_default
    from he_runtime.errors import PlanError
    from he_runtime.gadget import SEAL
    from he_runtime.plan.counts import FUSED

    error = _ERROR * max(map(abs, model.ranges[model.output.node]))
    try:
        return compile(model, table=load_default(backend), gadget=None if backend in FUSED else SEAL, max_error=error)
    except PlanError:
        return compile(model, max_error=error)


@dataclass
class Contenders:
    """Who runs, who does not and why, and what is worth saying of each. A context: at its end processes end."""

    model: CompressedModel
    x: Floats  # normalized images (n, *shape)
    largest: float  # magnitude of the clear outputs
    runs: dict[str, _Run] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    ours: dict[str, Local] = field(default_factory=dict)
    _open: ExitStack = field(default_factory=ExitStack)

    def add_backend(self, backend: str) -> None:
        """Our own back end; native with all threads, and with one."""
        from .local import Local
        from .sweep_run import refuse_too_large

        names = ("native", "native_1thread") if backend == "native" else (f"{backend}_backend",)

        def make() -> dict[str, _Run]:
            planned = plan_for(self.model, backend)
            refuse_too_large(planned)
            local = self.ours[backend] = Local(planned, backend)
            if backend != "native":
                return {names[0]: lambda k: local.timed(self.x[k])}
            return {name: self._threaded(local, n) for name, n in zip(names, (cores(), 1), strict=True)}

        self._add(names, make)

    def _threaded(self, local: Local, threads: int) -> _Run:
        def run(k: int) -> tuple[float, Floats]:
            use_threads(threads)
            return local.timed(self.x[k])

        return run

    def add_tenseal_api(self, network: str) -> None:
        """TenSEAL's own high-level interface, on the network of its tutorial."""
        from he_runtime.errors import BackendUnavailable

        def make() -> dict[str, _Run]:
            from .tenseal_tutorial import TensealTutorial

            if network != "tenseal-cnn":
                raise BackendUnavailable(f"cannot run {network!r} in TenSEAL's interface: its tutorial has one network")
            theirs = TensealTutorial(self.model, self.largest, cores())
            return {"tenseal_api": lambda k: theirs.run(self.x[k])}

        self._add(("tenseal_api",), make)

    def add_orion(self, network: str, environment: Path) -> None:
        """Orion, in a process of its own."""
        from .orion_peer import OrionPeer

        def make() -> dict[str, _Run]:
            peer = self._open.enter_context(OrionPeer(self.model, network, self.x, self.largest, environment))
            self.facts["orion"] = peer.facts
            return {"orion": peer.run}

        self._add(("orion",), make)

    def _add(self, names: tuple[str, ...], make: Callable[[], dict[str, _Run]]) -> None:
        from he_runtime.errors import SecateurError

        try:
            self.runs |= make()
        except SecateurError as error:
            self.absent |= dict.fromkeys(names, error.message)

    def drop(self, name: str, why: str) -> None:
        """One that failed while it ran."""
        say(f"{name}: {why}")
        del self.runs[name]
        self.absent[name] = why

    def __enter__(self) -> Contenders:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
