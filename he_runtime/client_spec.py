"""ClientSpec: everything a client may know of a served plan, as data and without weights.

Parameters, the exact keys, the slot maps of input and output, the level and scale of each, normalization, calibrated
range, labels and post-processing. It crosses the network as JSON inside a protobuf field and is digested, so a client
can pin it. `parse` distrusts every byte.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import ParameterError, PlanError, Reason
from .gadget import Gadget
from .params import CkksParams
from .ring import KeyRequest, KeySetSpec

__all__ = ["ClientSpec", "TensorSpec"]

FORMAT = "secateur.client-spec"
VERSION = 1
_MAX_CIPHERTEXTS = 4096
# (ciphertexts, slots / batch): flat index of the tensor element in each lane group, -1 for zero
SlotMap = npt.NDArray[np.int32]


@dataclass(frozen=True)
class TensorSpec:
    """An encrypted tensor of `batch` samples: their shape, where elements lie, level and scale of the ciphertexts.

    Samples are interleaved: element slot_map[c, v] of sample s lies in ciphertext c at slot v * batch + s. A batch of
    one is the usual packing of one input; as many samples as slots is one feature per ciphertext.
    """

    name: str
    shape: tuple[int, ...]
    slot_map: SlotMap
    level: int
    scale: float
    batch: int = 1

    @property
    def ciphertexts(self) -> int:
        return int(self.slot_map.shape[0])

    def pack(self, samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Up to `batch` samples (n, *shape) -> slot vectors (ciphertexts, slots), replicas included, zeros elsewhere."""
        flat = np.asarray(samples, dtype=np.float64).reshape(len(samples), -1)
        padded = np.zeros((flat.shape[1] + 1, self.batch))
        padded[:-1, : len(flat)] = flat.T
        return padded[self.slot_map].reshape(self.ciphertexts, -1)

    def unpack(self, slots: npt.NDArray[np.float64], count: int = 1) -> npt.NDArray[np.float64]:
        """Slot vectors (ciphertexts, slots) -> the first `count` samples (count, *shape).

        The first lane group of every element is read.
        """
        flat_map = self.slot_map.ravel()
        used = np.flatnonzero(flat_map >= 0)
        first = np.full(math.prod(self.shape), -1, dtype=np.int64)
        first[flat_map[used[::-1]]] = used[::-1]
        lanes = np.asarray(slots, dtype=np.float64).reshape(-1, self.batch)[first, :count]
        return np.ascontiguousarray(lanes.T).reshape(count, *self.shape)

    def to_json(self) -> dict[str, Any]:
        packed = zlib.compress(np.ascontiguousarray(self.slot_map, dtype="<i4").tobytes(), 9)
        return {
            "name": self.name,
            "shape": list(self.shape),
            "level": self.level,
            "scale": self.scale.hex(),
            "batch": self.batch,
            "ciphertexts": self.ciphertexts,
            "slot_map": base64.b64encode(packed).decode(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], params: CkksParams, complete: bool = True) -> TensorSpec:
        """`complete` demands a place for every element; an input may leave out those that the model does not read."""
        count, level, batch = int(data["ciphertexts"]), int(data["level"]), int(data["batch"])
        shape = tuple(int(n) for n in data["shape"])
        scale = float.fromhex(data["scale"])
        if not 1 <= count <= _MAX_CIPHERTEXTS or not 0 <= level <= params.max_level:
            raise PlanError(
                f"cannot use tensor spec: got {count} ciphertexts at level {level}, need levels and counts in bounds"
            )
        if not math.isfinite(scale) or scale < 1 or math.log2(scale) > params.log2_q(level):
            raise PlanError("cannot use tensor spec: need a scale that is finite and fits the modulus")
        if not 1 <= batch <= params.slots or params.slots % batch:
            raise PlanError(f"cannot use tensor spec: a batch of {batch} does not divide {params.slots} slots")
        size, width = math.prod(shape), params.slots // batch
        if not shape or min(shape) < 1 or size > (count if complete else _MAX_CIPHERTEXTS) * width:
            raise PlanError(
                f"cannot use tensor spec: got a shape of {size} elements, need one that fits {count} ciphertexts"
            )
        expected = count * width * 4
        inflate = zlib.decompressobj()
        raw = inflate.decompress(base64.b64decode(data["slot_map"], validate=True), expected + 1)
        if len(raw) != expected or not inflate.eof:
            raise PlanError(f"cannot use tensor spec: need a slot map of exactly {expected} bytes")
        slot_map = np.frombuffer(raw, dtype="<i4").reshape(count, width).astype(np.int32)
        if slot_map.min() < -1 or slot_map.max() >= size:
            raise PlanError("cannot use tensor spec: need a slot map of elements of the tensor")
        if complete and len(np.unique(slot_map[slot_map >= 0])) != size:
            raise PlanError("cannot use tensor spec: need a slot map that places every element of the tensor")
        return cls(str(data["name"]), shape, slot_map, level, scale, batch)


@dataclass(frozen=True)
class ClientSpec:
    """What `predict` needs, and what a careful client checks before it makes a key.

    `error_bound` is the predicted bound on |encrypted - clear| per output element. `low` and `high` bound the
    raw (unnormalized) inputs seen in calibration.
    """

    model: str
    version: str
    plan_digest: str
    params: CkksParams
    keys: KeySetSpec
    input: TensorSpec
    output: TensorSpec
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    low: float = 0.0
    high: float = 1.0
    labels: tuple[str, ...] = ()
    post_processing: Literal["none", "argmax", "softmax"] = "none"
    error_bound: float = 0.0

    def to_json(self) -> bytes:
        """Canonical JSON."""
        record = {
            "format": FORMAT,
            "spec_version": VERSION,
            "model": self.model,
            "version": self.version,
            "plan_digest": self.plan_digest,
            "params": self.params.to_json(),
            "gadget": self.keys.gadget,
            "keys": [[r.element, r.level] for r in self.keys.requests],
            "input": self.input.to_json(),
            "output": self.output.to_json(),
            "mean": list(self.mean),
            "std": list(self.std),
            "low": self.low,
            "high": self.high,
            "labels": list(self.labels),
            "post_processing": self.post_processing,
            "error_bound": self.error_bound,
        }
        return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def parse(cls, data: bytes) -> ClientSpec:
        """Strictly parse; ParameterError for bad or insecure parameters, PlanError for anything else malformed."""
        try:
            record = json.loads(data)
            if record["format"] != FORMAT or record["spec_version"] != VERSION:
                raise PlanError(
                    f"cannot read the client spec: got version {_brief(record['spec_version'])}, need version {VERSION}; "
                    "try a client of the server's version",
                    Reason.VERSION_UNKNOWN,
                )
            params = CkksParams.from_json(record["params"])
            spec = cls(
                model=str(record["model"]),
                version=str(record["version"]),
                plan_digest=str(record["plan_digest"]),
                params=params,
                keys=_parse_keys(record, params),
                input=TensorSpec.from_json(record["input"], params, complete=False),
                output=TensorSpec.from_json(record["output"], params),
                mean=tuple(float(v) for v in record["mean"]),
                std=tuple(float(v) for v in record["std"]),
                low=float(record["low"]),
                high=float(record["high"]),
                labels=tuple(str(v) for v in record["labels"]),
                post_processing=record["post_processing"],
                error_bound=float(record["error_bound"]),
            )
            _check_numbers(spec)
            return spec
        except (PlanError, ParameterError):
            raise
        except Exception as error:  # hostile JSON may fail in any conversion above
            raise PlanError(
                f"cannot read the client spec: malformed ({type(error).__name__}); try the server's operator"
            ) from error


def _brief(value: object) -> str:
    """Something hostile, for an error message: escaped, and not longer than a line bears."""
    return repr(value)[:40]


def _parse_keys(record: Mapping[str, Any], params: CkksParams) -> KeySetSpec:
    try:
        gadget = Gadget.parse(record["gadget"])
    except ParameterError as error:
        raise PlanError(f"cannot use the client spec: {error.message}", Reason.VERSION_UNKNOWN) from error
    gadget.check(params)
    requests = tuple(KeyRequest(int(element), int(level)) for element, level in record["keys"])
    for r in requests:
        valid_element = r.element == 0 or (r.element % 2 == 1 and 1 < r.element < 2 * params.degree)
        if not valid_element or not 0 <= r.level <= params.max_level:
            raise PlanError(
                f"cannot use the key list: got element {r.element} at level {r.level}, need those of N={params.degree}"
            )
    if len({r.element for r in requests}) != len(requests):
        raise PlanError("cannot use the key list: got an element twice, need each once")
    return KeySetSpec(requests, gadget.name)


def _check_numbers(spec: ClientSpec) -> None:
    channels = spec.input.shape[0]
    numbers = (*spec.mean, *spec.std, spec.low, spec.high, spec.error_bound)
    if not all(math.isfinite(v) for v in numbers) or any(v == 0 for v in spec.std):
        raise PlanError("cannot use the client spec: normalization or range is not finite")
    if {len(spec.mean), len(spec.std)} - {1, channels}:
        raise PlanError(f"cannot use the client spec: normalization has {len(spec.mean)} entries, need 1 or {channels}")
    if spec.post_processing not in ("none", "argmax", "softmax"):
        raise PlanError(
            f"cannot use post-processing {_brief(spec.post_processing)}: this build knows none, argmax, softmax"
        )
    if spec.input.batch != spec.output.batch:
        raise PlanError(
            f"cannot use the client spec: {spec.input.batch} samples go in and {spec.output.batch} come out"
        )
    if spec.labels and len(spec.labels) != math.prod(spec.output.shape):
        raise PlanError("cannot use the client spec: the number of labels is not the number of outputs")
