"""The real runtime behind the server: plans, the wire codec and the executor of he_runtime (see server.engine.runtime)."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from he_runtime import CompressedModel, Executor, Plan
from he_runtime.backends import BACKENDS, LIBRARIES
from he_runtime.client_spec import ClientSpec
from he_runtime.cost import CostTable, load_default, price
from he_runtime.errors import ModelError, ParameterError, Reason
from he_runtime.execute import LoadedKeys
from he_runtime.ring import EvaluationKeys
from he_runtime.wire import (
    WIRE_VERSION,
    ciphertexts_byte_size,
    decode_ciphertexts,
    encode_ciphertexts,
    key_set_byte_size,
    read_key_set,
)
from protos.native import LayerEstimate

from ..observe.families import layer_families
from ..observe.logs import event
from .runtime import OPERANDS, Cost, ModelDescription, WorkerModel

__all__ = ["build", "describe", "estimate", "release", "wire_version"]

_PLAN_DIRECTORY = "plan"
_KERNEL = "he_runtime.kernel._kernel"


def wire_version() -> int:
    return WIRE_VERSION


def describe(directory: Path, name: str, version: str) -> ModelDescription:
    """Verify a served model directory (model and plan digests, plan checks, security) and describe it.

    Raises ModelError, PlanError, or ParameterError for parameters that only tests may use.
    """
    model = CompressedModel.load(directory)
    plan = Plan.load(directory / _PLAN_DIRECTORY)
    if plan.model_digest != model.digest:
        raise ModelError(
            f"cannot serve {name} {version}: the plan was made for model {plan.model_digest[:12]}, the directory holds "
            f"{model.digest[:12]}; try planning the model again",
            Reason.DIGEST_MISMATCH,
        )
    if plan.params.insecure:
        raise ParameterError(
            f"cannot serve {name} {version}: its parameters are {plan.params.name}; need 128-bit security; try planning it again",
            Reason.PARAMETERS_INSECURE,
        )
    spec = _client_spec(plan, name, version)
    return ModelDescription(
        name=name,
        version=version,
        directory=directory,
        client_spec=spec.to_json(),
        client_spec_digest=spec.digest,
        params_digest=plan.params.digest,
        model_digest=model.digest,
        plan_digest=plan.digest,
        max_key_bytes=key_set_byte_size(plan.keys, plan.params, seeded=False),
        max_request_bytes=ciphertexts_byte_size(_input_count(plan), spec.input.level, plan.params),
        families=layer_families(model, (op.layer for op in plan.ops)),
    )


def _input_count(plan: Plan) -> int:
    return sum(len(port.values) for port in plan.inputs)


def _client_spec(plan: Plan, name: str, version: str) -> ClientSpec:
    """The plan's spec under the name it is served by, which is the directory's."""
    return replace(plan.client_spec(version), model=name)


def problems(backend: str) -> list[str]:
    """An unknown back end, or one whose library is absent."""
    if backend not in BACKENDS:
        return [f"cannot use engine.backend = {backend!r}: need one of {', '.join(BACKENDS)}"]
    if importlib.util.find_spec(LIBRARIES[backend]) is None:
        return [f"cannot use engine.backend = {backend!r}: {LIBRARIES[backend]} is not installed"]
    return []


@lru_cache(maxsize=64)
def estimate(model: ModelDescription, backend: str, cost_table: Path | None) -> Cost:
    """Price the plan by the operator's table, or by the shipped one, good for an order of magnitude.

    PlanError for a table of another back end; one of another machine, other versions or long ago is named as such.
    """
    table = CostTable.load(cost_table).require_backend(backend) if cost_table else load_default(backend)
    report = price(Plan.load(model.directory / _PLAN_DIRECTORY), table)
    return Cost(
        predicted_ms=report.latency_ms,
        low_ms=report.low_ms,
        high_ms=report.high_ms,
        confidence=report.confidence,
        up_bytes=report.upload_bytes,
        down_bytes=report.download_bytes,
        key_bytes=report.key_bytes,
        counts=report.counts,
        dense_counts=_read_dense_counts(model.directory),
        table_name=report.table,
        layers=tuple(LayerEstimate(x.name, x.ms, x.low_ms, x.high_ms) for x in report.layers),
        peak_bytes=report.peak_bytes,
        keys=len(report.keys),
        levels_left=report.levels_left,
        error_bound=report.error_bound,
    )


def _by_leaf(counts: Mapping[tuple[str, int], int]) -> dict[str, int]:
    """Operations by name, summed over levels."""
    total: Counter[str] = Counter()
    for (leaf, _), count in counts.items():
        total[leaf] += count
    return dict(total)


def _read_dense_counts(directory: Path) -> dict[str, int]:
    """Counts of the uncompressed network, which the operator may store beside the plan."""
    path = directory / _PLAN_DIRECTORY / "dense_counts.json"
    if not path.is_file():
        return {}
    try:
        return {str(k): int(v) for k, v in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError("cannot read plan/dense_counts.json: need an object of whole numbers") from error


class _HeModel:
    """A plan on a backend inside a worker."""

    def __init__(self, plan: Plan, backend: str) -> None:
        self._plan = plan
        operands = os.environ.get(OPERANDS)
        self._executor = Executor(plan, backend, Path(operands) if operands else None)
        if problem := getattr(self._executor.backend, "unshared", ""):
            event("operands not shared", level=logging.WARNING, cause=problem)
        self._max_inputs = _input_count(plan)
        self.layers = dict(Counter(op.layer for op in plan.ops))

    def load_keys(self, path: Path, check: Callable[[], None]) -> LoadedKeys:
        params = self._plan.params
        records = {}
        for record in read_key_set(path, params, self._plan.gadget):
            check()
            records[record.element] = record
        return self._executor.load_keys(EvaluationKeys(params.digest, records))

    def run(
        self, ciphertexts: bytes, keys: LoadedKeys, check: Callable[[], None], on_layer: Callable[[str], None]
    ) -> tuple[bytes, Mapping[str, int]]:
        inputs = decode_ciphertexts(ciphertexts, self._plan.params, max_count=self._max_inputs)
        check()
        operation, planned = getattr(on_layer, "operation", None), len(self._plan.ops)
        on_op = None if operation is None else lambda index: operation(index, planned)
        outputs = self._executor.run(inputs, keys, check, on_layer, on_op)
        return encode_ciphertexts(outputs, self._plan.params), _by_leaf(self._executor.counters)


def release() -> None:
    """Give memory that is free inside this process back to the system. SEAL's own pool, which only its back ends use,
    keeps what it has for the next keys."""
    kernel = sys.modules.get(_KERNEL)
    if kernel is not None:
        kernel.release_cached()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def build(directory: Path, backend: str) -> WorkerModel:
    """Load the plan and encode its plaintexts for `backend`, or map them where another worker has done so.

    BackendUnavailable names the missing package.
    """
    return _HeModel(Plan.load(directory / _PLAN_DIRECTORY), backend)
