"""Running a plan: on slots (`run_clear`) or on ciphertexts (`Executor`)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends import default_backend, open_backend
from .backends.base import Check, OnLayer, OnOp, walk
from .backends.clear import ClearEvaluator
from .errors import CiphertextMismatch, Reason
from .plan import Plan
from .plan.ops import RELATIVE_SCALE_TOLERANCE
from .ring import CiphertextData, EvaluationKeys

__all__ = ["Executor", "LoadedKeys", "run_clear"]


def run_clear(plan: Plan, x: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Evaluate the plan on plain slots: normalized inputs (B, *shape) -> outputs (B, *output shape)."""
    spec, output = plan.tensor_spec(plan.inputs[0]), plan.tensor_spec(plan.outputs[0])
    samples = np.asarray(x, dtype=np.float64)
    chunks = [samples[k : k + plan.batch] for k in range(0, len(samples), plan.batch)]
    packed = np.stack([spec.pack(chunk) for chunk in chunks], axis=1)
    evaluator = ClearEvaluator(plan)
    results = walk(plan, evaluator, [evaluator.upload(slots, spec.level) for slots in packed])
    slots = np.stack([r.slots for r in results], axis=1)
    return np.concatenate([output.unpack(part, len(chunk)) for part, chunk in zip(slots, chunks, strict=True)])


class LoadedKeys:
    """A client's evaluation keys in a backend's own form; `byte_size` is what they occupy in memory."""

    def __init__(self, handle: Any, byte_size: int) -> None:
        self.handle = handle
        self.byte_size = byte_size


class Executor:
    """One plan on one backend, plaintexts encoded once; `run` may be called many times, for many clients."""

    def __init__(self, plan: Plan, backend: str | None = None, share: Path | None = None) -> None:
        """`backend` is by default `native` where the kernel is built, else `tenseal`.

        `share` is a private directory for encoded plaintexts that processes of this machine share, where the backend can.
        """
        self.plan = plan
        self.backend = open_backend(backend or default_backend(), plan, share)
        self.counters: Counter[tuple[str, int]] = Counter()

    def load_keys(self, keys: EvaluationKeys) -> LoadedKeys:
        """KeyMismatch when a key that the plan names is absent, cut too low, or made for other parameters."""
        handle = self.backend.load_keys(keys)
        return LoadedKeys(handle, int(handle.byte_size))

    def run(
        self,
        inputs: Sequence[CiphertextData],
        keys: LoadedKeys,
        check: Callable[[], None] | None = None,
        on_layer: OnLayer | None = None,
        on_op: OnOp | None = None,
    ) -> list[CiphertextData]:
        """Evaluate; `check` is called between operations and may raise Cancelled. `counters` then holds this run's.

        `on_layer` is called with each layer's name as its operations begin, `on_op` with each op's index (see walk).
        """
        self._check_inputs(inputs)
        evaluator = self.backend.evaluator_for(keys.handle)
        uploaded = [evaluator.upload(data) for data in inputs]
        call: Check = check or (lambda: None)
        results = walk(
            self.plan, evaluator, uploaded, call, on_layer or (lambda layer: None), on_op or (lambda index: None)
        )
        self.counters = evaluator.counters
        return [evaluator.download(r) for r in results]

    def _check_inputs(self, inputs: Sequence[CiphertextData]) -> None:
        expected = [self.plan.values[v] for port in self.plan.inputs for v in port.values]
        if len(inputs) != len(expected):
            raise CiphertextMismatch(
                f"cannot evaluate: got {len(inputs)} ciphertexts, need {len(expected)}; try packing by the client spec",
                Reason.SIZE_MISMATCH,
            )
        for data, kind in zip(inputs, expected, strict=True):
            if data.level != kind.level or len(data.polys) != kind.size:
                raise CiphertextMismatch(
                    f"cannot evaluate: got a ciphertext at level {data.level} with {len(data.polys)} polynomials, need "
                    f"level {kind.level} with {kind.size}; try encrypting by the client spec",
                    Reason.LEVEL_MISMATCH if data.level != kind.level else Reason.SIZE_MISMATCH,
                )
            if not math.isfinite(data.scale) or abs(data.scale - kind.scale) > RELATIVE_SCALE_TOLERANCE * kind.scale:
                raise CiphertextMismatch(
                    f"cannot evaluate: got a ciphertext of scale {data.scale:.17g}, need {kind.scale:.17g}; try encrypting "
                    "by the client spec",
                    Reason.SCALE_MISMATCH,
                )
