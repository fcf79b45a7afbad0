"""A plan on disk: plan.json (structure), vectors.safetensors (operands, cells, slot maps), DIGEST."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from ..errors import ParameterError, PlanError, Reason, SecateurError
from ..gadget import Gadget
from ..params import CkksParams
from .ops import Kind, Op, Plaintext, ValueType
from .plan import STRUCTURE, LayerInfo, Plan, Port
from .verify import verify

__all__ = ["FORMAT", "VERSION", "load_plan", "plan_digest", "save_plan"]

FORMAT = "secateur.plan"
VERSION = 2  # 2: error_bound in the place of worst_sigma


def save_plan(plan: Plan, path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    structure, arrays = _to_bytes(plan)
    (path / "vectors.safetensors").write_bytes(arrays)
    (path / "plan.json").write_bytes(structure)
    (path / "DIGEST").write_text(_digest(structure, arrays) + "\n")
    return path


def load_plan(path: Path) -> Plan:
    try:
        structure, arrays = (path / "plan.json").read_bytes(), (path / "vectors.safetensors").read_bytes()
        stated = (path / "DIGEST").read_text().strip()
    except OSError as error:
        raise PlanError(
            f"cannot load a plan from {path}: {error.strerror or error}; need plan.json, vectors.safetensors and "
            "DIGEST; try `secateur plan --output`"
        ) from error
    if stated != _digest(structure, arrays):
        raise PlanError(
            f"cannot load the plan in {path}: its files do not match DIGEST; try planning the model again",
            Reason.DIGEST_MISMATCH,
        )
    try:
        return verify(_from_bytes(structure, arrays))
    except SecateurError:
        raise
    except Exception as error:  # a malformed plan may fail in any conversion
        raise PlanError(
            f"cannot read the plan in {path}: malformed ({type(error).__name__}); try planning again"
        ) from error


def plan_digest(plan: Plan) -> str:
    return _digest(*_to_bytes(plan))


def _digest(structure: bytes, arrays: bytes) -> str:
    hasher = hashlib.sha256()
    for part in (structure, arrays):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.hexdigest()


def _to_bytes(plan: Plan) -> tuple[bytes, bytes]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    by_period: dict[int, list[int]] = {}
    for index, vector in enumerate(plan.vectors):
        by_period.setdefault(len(vector), []).append(index)
    for period, indices in by_period.items():
        arrays[f"vectors.{period}"] = np.stack([plan.vectors[i] for i in indices])
        arrays[f"indices.{period}"] = np.array(indices, dtype=np.int64)
    for k, op in enumerate(plan.ops):
        if op.cells is not None:
            arrays[f"cells.{k}"] = np.ascontiguousarray(op.cells, dtype=np.int64)
    for side, ports in (("input", plan.inputs), ("output", plan.outputs)):
        for k, port in enumerate(ports):
            arrays[f"slot_map.{side}.{k}"] = np.ascontiguousarray(port.slot_map)
    text = json.dumps(_structure(plan), sort_keys=True, separators=(",", ":"))
    return text.encode(), save_safetensors({k: arrays[k] for k in sorted(arrays)})


def _structure(plan: Plan) -> dict[str, Any]:
    def ports(items: tuple[Port, ...]) -> list[dict[str, Any]]:
        return [{"name": p.name, "shape": list(p.shape), "values": list(p.values)} for p in items]

    return {
        "format": FORMAT,
        "version": VERSION,
        "model_name": plan.model_name,
        "model_digest": plan.model_digest,
        "params": plan.params.to_json(),
        "gadget": plan.gadget,
        "ops": [[o.kind.value, list(o.inputs), list(o.outputs), o.layer, o.plaintext, o.step] for o in plan.ops],
        "values": [[v.level, v.scale.hex(), v.size] for v in plan.values],
        "plaintexts": [[p.vector, p.level, p.scale.hex()] for p in plan.plaintexts],
        "vector_count": len(plan.vectors),
        "inputs": ports(plan.inputs),
        "outputs": ports(plan.outputs),
        "layers": [[x.name, x.kind, x.layout, x.magnitude] for x in plan.layers],
        "segments": list(plan.segments),
        "sigma": plan.sigma.hex(),
        "error_bound": plan.error_bound.hex(),
        "batch": plan.batch,
        "client": dict(plan.client),
        "detours": [[step, *parts] for step, parts in sorted(plan.detours.items())],
        **({} if plan.disclosure == STRUCTURE else {"disclosure": plan.disclosure}),
    }


def _gadget(text: object, params: CkksParams) -> str:
    try:
        gadget = Gadget.parse(text)
    except ParameterError as error:
        raise PlanError(f"cannot load the plan: {error.message}", Reason.PLAN_VERSION_UNKNOWN) from error
    gadget.check(params)
    return gadget.name


def _from_bytes(structure: bytes, blob: bytes) -> Plan:
    data, arrays = json.loads(structure), load_safetensors(blob)
    if data["format"] != FORMAT or data["version"] != VERSION:
        raise PlanError(
            f"cannot read plan format {data['format']!r} version {data['version']!r}: this build reads {FORMAT!r} "
            f"version {VERSION}; try planning the model again with this version",
            Reason.PLAN_VERSION_UNKNOWN,
        )
    params = CkksParams.from_json(data["params"])

    def ports(side: str, items: list[dict[str, Any]]) -> tuple[Port, ...]:
        return tuple(
            Port(p["name"], tuple(p["shape"]), tuple(p["values"]), arrays[f"slot_map.{side}.{k}"].astype(np.int32))
            for k, p in enumerate(items)
        )

    vectors: list[npt.NDArray[np.float64]] = [np.zeros(0)] * int(data["vector_count"])
    for name, stacked in arrays.items():
        if name.startswith("vectors."):
            for index, row in zip(arrays[f"indices.{name[8:]}"], stacked, strict=True):
                vectors[int(index)] = row
    ops = tuple(
        Op(Kind(kind), tuple(inputs), tuple(outputs), layer, plain, step, arrays.get(f"cells.{k}"))
        for k, (kind, inputs, outputs, layer, plain, step) in enumerate(data["ops"])
    )
    return Plan(
        model_name=data["model_name"],
        model_digest=data["model_digest"],
        params=params,
        gadget=_gadget(data["gadget"], params),
        ops=ops,
        values=tuple(ValueType(level, float.fromhex(scale), size) for level, scale, size in data["values"]),
        vectors=tuple(vectors),
        plaintexts=tuple(Plaintext(v, level, float.fromhex(scale)) for v, level, scale in data["plaintexts"]),
        inputs=ports("input", data["inputs"]),
        outputs=ports("output", data["outputs"]),
        layers=tuple(LayerInfo(*x) for x in data["layers"]),
        segments=tuple(data["segments"]),
        sigma=float.fromhex(data["sigma"]),
        error_bound=float.fromhex(data["error_bound"]),
        batch=int(data["batch"]),
        client=data["client"],
        detours={step: (a, b) for step, a, b in data.get("detours", [])},
        disclosure=str(data.get("disclosure", STRUCTURE)),
    )
