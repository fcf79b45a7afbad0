"""A model as Orion's process reads it: one .npz with the layers, the weights, the images and Orion's own parameters."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from he_runtime import CompressedModel

    Floats = npt.NDArray[np.float64]

__all__ = ["CONFIGURATIONS", "export"]

_SMALL = {
    "LogN": 13,
    "LogQ": [29, 26, 26, 26, 26, 26],
    "LogP": [29, 29],
    "LogScale": 26,
    "H": 8192,
    "RingType": "ConjugateInvariant",
}
_LARGE = {
    "LogN": 14,
    "LogQ": [45, 30, 30, 30, 30, 30, 30, 30],
    "LogP": [45, 45],
    "LogScale": 30,
    "H": 8192,
    "RingType": "ConjugateInvariant",
}
# Network -> Orion's own CKKS parameters for it; benchmarks/orion/README.md says where they come from.
CONFIGURATIONS: dict[str, dict[str, Any]] = {"mlp": _SMALL, "lola": _SMALL, "lenet": _LARGE}
_SETTINGS = {"margin": 2, "embedding_method": "hybrid", "backend": "lattigo", "fuse_modules": True, "debug": False}
_OPS = {"dense": "dense", "conv2d": "conv2d", "reshape": "flatten", "quadratic": "square"}


def export(model: CompressedModel, network: str, x: Floats, largest: float, path: Path) -> float:
    """Write `model` and the normalized images `x` (n, *shape) for one of CONFIGURATIONS; the factor of its outputs.

    Orion's outputs come `factor` times as large: what its last prime leaves above the scale holds `largest` only after
    a power of two goes into the last layer. Raises ModelError unless every activation is a square.
    """
    import numpy as np

    config = CONFIGURATIONS[network]
    room = config["LogQ"][0] - config["LogScale"] - 2  # a sign, and a factor of two to spare
    factor: float = 2.0 ** min(0, room - math.ceil(math.log2(largest)))
    layers, arrays = _layers(model)
    for name in ("weight", "bias"):
        arrays[f"{name}_{len(layers) - 1}"] *= factor
    spec = {"config": {"ckks_params": config, "orion": _SETTINGS | {"io_mode": "none"}}, "layers": layers}
    np.savez(path, spec=np.array(json.dumps(spec)), x=x.astype(np.float32), **arrays)  # type: ignore[arg-type]
    return factor


def _layers(model: CompressedModel) -> tuple[list[dict[str, Any]], dict[str, Floats]]:
    """The chain of layers, and the arrays weight_K and bias_K of layer K; a square's factor goes into the layer before."""
    import numpy as np

    layers: list[dict[str, Any]] = []
    arrays: dict[str, Floats] = {}
    for k, node in enumerate(model.nodes):
        layers.append({"kind": _kind(model, k)})
        if node.op == "quadratic":
            last = max(i for i in range(k) if f"weight_{i}" in arrays)
            a = model.array(node, "a")
            root = np.sqrt(np.broadcast_to(1.0 if a is None else a, len(arrays[f"bias_{last}"])))
            arrays[f"bias_{last}"] *= root
            arrays[f"weight_{last}"] *= root.reshape((-1,) + (1,) * (arrays[f"weight_{last}"].ndim - 1))
        elif node.op != "reshape":
            weight, bias = model.array(node, "weight"), model.array(node, "bias")
            assert weight is not None
            arrays[f"weight_{k}"] = weight.astype(np.float64)
            arrays[f"bias_{k}"] = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
        if node.op == "conv2d":
            layers[-1] |= {name: int(node.attrs[name][0]) for name in ("stride", "padding")}
    return layers, arrays


def _kind(model: CompressedModel, k: int) -> str:
    """What run.py calls node k. ModelError for anything but a chain of linear layers and squares."""
    import numpy as np

    from he_runtime.errors import ModelError

    node = model.nodes[k]
    before = model.input.name if k == 0 else model.nodes[k - 1].name
    if node.op not in _OPS or node.inputs != (before,):
        raise ModelError(f"cannot run {model.name!r} in Orion: got {node.op!r} at {node.name!r}, need a plain chain")
    if node.op == "quadratic":
        a, b, c = (model.array(node, role) for role in "abc")
        if np.any(b) or np.any(c) or a is None or np.any(a < 0):
            raise ModelError(f"cannot run {model.name!r} in Orion: {node.name!r} is not a square; try --no-orion")
    return _OPS[node.op]
