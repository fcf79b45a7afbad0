"""CompressedModel: the frozen artifact between preparation and planning. No torch, no pickle.

On disk it is a directory with `manifest.json` (graph, quantization, input and output description) and
`arrays.safetensors`. The digest covers both, so a tampered artifact is refused at load.

A model is a list of nodes in evaluation order. Tensors carry no batch axis; images are (channel, height, width).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from .chebyshev import check_polynomial
from .errors import ModelError, Reason
from .model_shapes import check_shapes

__all__ = ["OPS", "CompressedModel", "InputSpec", "Node", "OpSpec", "OutputSpec"]

FORMAT = "secateur.model"
VERSION = 1
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class OpSpec:
    """What a node of one kind must have: number of inputs (or more), required and optional arrays, required attributes."""

    inputs: int
    arrays: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    attrs: tuple[str, ...] = ()
    more: bool = False


# The whole vocabulary. `quadratic` is a*x^2 + b*x + c with coefficients per channel (first axis) or of shape ();
# a pure square has a=1, b=c=0. `affine` is scale*x + shift, per channel or of shape ().
OPS: dict[str, OpSpec] = {
    "dense": OpSpec(1, ("weight",), ("bias",)),  # weight (out, in)
    "conv2d": OpSpec(
        1, ("weight",), ("bias",), ("stride", "padding", "dilation", "groups")
    ),  # (out, in/groups, kh, kw)
    "avg_pool2d": OpSpec(1, (), (), ("kernel", "stride", "padding")),  # divisor is always kh*kw (padding counted)
    "reshape": OpSpec(1),
    "affine": OpSpec(1, ("scale", "shift")),
    "quadratic": OpSpec(1, ("a", "b", "c")),
    "polynomial": OpSpec(1, ("coefficients",), (), ("basis", "low", "high")),  # chebyshev.py
    "add": OpSpec(2),
    "multiply": OpSpec(2),  # element by element, two tensors of one shape
    "concat": OpSpec(1, more=True),  # along the first axis (channels, features)
    "matmul": OpSpec(2),  # (..., m, k) x (..., k, n); transpose_left and transpose_right swap a side's last axes
}


@dataclass(frozen=True)
class Node:
    """One layer. `arrays` maps a role ("weight") to a name in the model's arrays; `shape` is the output shape."""

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class InputSpec:
    """The model's input as a client sees it.

    The client computes (x - mean) / std per channel (length 1 or C), then encrypts. `low` and `high` bound the raw
    values seen in calibration.
    """

    name: str
    shape: tuple[int, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class OutputSpec:
    """Which node is the output, and what the client does with it after decryption."""

    node: str
    labels: tuple[str, ...] = ()
    post_processing: Literal["none", "argmax", "softmax"] = "none"


@dataclass(frozen=True)
class CompressedModel:
    """Layer graph plus arrays; immutable, versioned, digested.

    `quantization` maps an array's name to the step of its integer grid: real value = integer * step. `ranges` maps a
    node's name to its calibrated (low, high). Per-element mean squares of a node's output, which the noise prediction
    needs, are arrays called "stats.<node>". `metadata` is free-form: recipe, metrics, data set, median margin.
    """

    name: str
    input: InputSpec
    output: OutputSpec
    nodes: tuple[Node, ...]
    arrays: Mapping[str, Array] = field(repr=False)
    quantization: Mapping[str, float] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        verify(self)

    def node(self, name: str) -> Node:
        for candidate in self.nodes:
            if candidate.name == name:
                return candidate
        raise ModelError(
            f"cannot find node {name!r} in model {self.name!r}: need one of {[n.name for n in self.nodes]}"
        )

    def array(self, node: Node, role: str) -> npt.NDArray[np.float64] | None:
        """The real (dequantized) float64 values of one of a node's arrays, or None where it has no such role."""
        key = node.arrays.get(role)
        if key is None:
            return None
        return np.asarray(self.arrays[key], dtype=np.float64) * self.quantization.get(key, 1.0)

    def mean_square(self, name: str) -> npt.NDArray[np.float64] | None:
        """E[x^2] per element of the output of node `name` (or of the input), over the calibration data."""
        stats = self.arrays.get(f"stats.{name}")
        return None if stats is None else np.asarray(stats, dtype=np.float64)

    def shape_of(self, name: str) -> tuple[int, ...]:
        return self.input.shape if name == self.input.name else self.node(name).shape

    def with_(self, **changes: Any) -> CompressedModel:
        return replace(self, **changes)

    def manifest(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "input": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self.input).items()},
            "output": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self.output).items()},
            "nodes": [
                {
                    "name": n.name,
                    "op": n.op,
                    "inputs": list(n.inputs),
                    "shape": list(n.shape),
                    "attrs": dict(n.attrs),
                    "arrays": dict(n.arrays),
                }
                for n in self.nodes
            ],
            "quantization": dict(self.quantization),
            "ranges": {k: list(v) for k, v in self.ranges.items()},
            "metadata": dict(self.metadata),
        }

    def to_bytes(self) -> tuple[bytes, bytes]:
        """(manifest JSON, safetensors), both canonical: equal models give equal bytes."""
        manifest = json.dumps(self.manifest(), sort_keys=True, indent=1).encode()
        arrays = {k: np.ascontiguousarray(self.arrays[k]) for k in sorted(self.arrays)}
        return manifest, save_safetensors(arrays)

    @cached_property
    def digest(self) -> str:
        """sha256 over manifest and arrays; once, since a model never changes."""
        manifest, arrays = self.to_bytes()
        return _digest(manifest, arrays)

    def save(self, directory: Path | str) -> Path:
        """Write manifest, arrays and digest into `directory` (made if absent); returns it."""
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        manifest, arrays = self.to_bytes()
        (path / "arrays.safetensors").write_bytes(arrays)
        (path / "manifest.json").write_bytes(manifest)
        (path / "DIGEST").write_text(_digest(manifest, arrays) + "\n")
        return path

    @classmethod
    def load(cls, directory: Path | str) -> CompressedModel:
        """Read and verify an artifact; ModelError on a missing, foreign, newer or altered one."""
        path = Path(directory)
        try:
            manifest = (path / "manifest.json").read_bytes()
            arrays = (path / "arrays.safetensors").read_bytes()
            stated = (path / "DIGEST").read_text().strip()
        except OSError as error:
            raise ModelError(
                f"cannot load a model from {path}: {error.strerror or error}; need manifest.json, arrays.safetensors "
                "and DIGEST; try `secateur compress` or CompressedModel.save"
            ) from error
        if stated != _digest(manifest, arrays):
            raise ModelError(
                f"cannot load the model in {path}: its files do not match DIGEST; try exporting it again",
                Reason.DIGEST_MISMATCH,
            )
        return cls.from_bytes(manifest, arrays)

    @classmethod
    def from_bytes(cls, manifest: bytes, arrays: bytes) -> CompressedModel:
        try:
            data = json.loads(manifest)
            if data["format"] != FORMAT or data["version"] != VERSION:
                raise ModelError(
                    f"cannot read model format {data['format']!r} version {data['version']!r}: this build reads "
                    f"{FORMAT!r} version {VERSION}; try exporting the model with this version",
                    Reason.VERSION_UNKNOWN,
                )
            return cls(
                name=str(data["name"]),
                input=InputSpec(**_tuples(data["input"])),
                output=OutputSpec(**_tuples(data["output"])),
                nodes=tuple(
                    Node(n["name"], n["op"], tuple(n["inputs"]), tuple(n["shape"]), n["attrs"], n["arrays"])
                    for n in data["nodes"]
                ),
                arrays=load_safetensors(arrays),
                quantization=data["quantization"],
                ranges={k: (float(v[0]), float(v[1])) for k, v in data["ranges"].items()},
                metadata=data["metadata"],
            )
        except ModelError:
            raise
        except Exception as error:  # a malformed artifact may fail in any of the parsers above
            raise ModelError(
                f"cannot read the model: malformed artifact ({type(error).__name__}); try exporting it again"
            ) from error


def _tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}


def _digest(manifest: bytes, arrays: bytes) -> str:
    hasher = hashlib.sha256()
    for part in (manifest, arrays):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.hexdigest()


def verify(model: CompressedModel) -> None:
    """Raise ModelError unless names resolve, ops are known, arrays exist and everything is finite."""
    known = {model.input.name}
    for node in model.nodes:
        spec = OPS.get(node.op)
        if spec is None:
            raise ModelError(
                f"cannot use node {node.name!r}: got op {node.op!r}, need one of {sorted(OPS)}",
                Reason.MODEL_UNSUPPORTED,
            )
        count = max(spec.inputs, len(node.inputs)) if spec.more else spec.inputs
        if len(node.inputs) != count or any(i not in known for i in node.inputs):
            raise ModelError(
                f"cannot use node {node.name!r}: inputs {node.inputs} do not resolve to {count} earlier nodes"
            )
        missing = [a for a in spec.arrays if a not in node.arrays] + [a for a in spec.attrs if a not in node.attrs]
        if missing or any(a not in (*spec.arrays, *spec.optional) for a in node.arrays):
            raise ModelError(
                f"cannot use node {node.name!r} ({node.op}): missing {missing}, has arrays {sorted(node.arrays)}"
            )
        if node.name in known:
            raise ModelError(f"cannot use node {node.name!r}: the name occurs twice")
        absent = [k for k in node.arrays.values() if k not in model.arrays]
        if absent:
            raise ModelError(f"cannot use node {node.name!r}: no arrays called {absent}")
        known.add(node.name)
        check_shapes(node, [tuple(model.shape_of(i)) for i in node.inputs])
        coefficients = model.array(node, "coefficients")
        if coefficients is not None:
            check_polynomial(node, coefficients)
    if model.output.node not in known or model.output.node == model.input.name:
        raise ModelError(f"cannot use output {model.output.node!r}: need one of {sorted(known - {model.input.name})}")
    for key, values in model.arrays.items():
        if values.dtype.kind not in "fi" or not np.isfinite(values).all():
            raise ModelError(f"cannot use array {key!r}: need finite floating-point or integer values")
