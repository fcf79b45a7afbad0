"""One network in Orion (https://github.com/baahl-nyu/orion), for `secateur bench mnist`.

The Python that runs this file is that of an environment of its own: it has Orion's packages and none of this project's.

    python run.py NETWORK.npz      one JSON line when ready, then one line of JSON for every image index read from stdin

NETWORK.npz (written by secateur/orion_export.py) holds `spec`, JSON: `config` for orion.init_scheme, and `layers`, each
of a kind: dense, conv2d, flatten or square; then `weight_K` and `bias_K` of layer K, and `x`, normalized images (n, *shape). Standard output carries nothing but those
lines: what Orion prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from importlib.metadata import version
from typing import Any, TextIO

import numpy as np
import orion  # type: ignore[import-not-found]  # it is in another environment
import orion.nn as on  # type: ignore[import-not-found]
import torch


class Network(on.Module):  # type: ignore[misc]  # Orion has no types
    """Layers one after the other, made of Orion's modules."""

    def __init__(self, layers: list[dict[str, Any]], arrays: Any) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(_layer(k, layer, arrays) for k, layer in enumerate(layers))

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


def _layer(k: int, layer: dict[str, Any], arrays: Any) -> Any:
    kind = layer["kind"]
    if kind == "square":
        return on.Quad()
    if kind == "flatten":
        return on.Flatten()
    weight, bias = (torch.from_numpy(arrays[f"{name}_{k}"]).float() for name in ("weight", "bias"))
    if kind == "dense":
        made = on.Linear(weight.shape[1], weight.shape[0])
    else:
        outputs, inputs, size, _ = weight.shape
        made = on.Conv2d(inputs, outputs, size, stride=layer["stride"], padding=layer["padding"])
    made.weight.data, made.bias.data = weight, bias
    return made


def _own_standard_output() -> TextIO:
    """A stream to where standard output went; whatever else writes there now goes to standard error."""
    mine = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return mine


def _say(out: TextIO, **record: Any) -> None:
    record["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    out.write(json.dumps(record) + "\n")
    out.flush()


def main(path: str) -> None:
    out = _own_standard_output()
    start = time.perf_counter()
    with np.load(path) as loaded:
        arrays = dict(loaded)
    spec, x = json.loads(str(arrays["spec"])), torch.from_numpy(arrays["x"]).float()
    torch.manual_seed(0)
    orion.init_scheme(spec["config"])
    net = Network(spec["layers"], arrays)
    net.eval()
    with torch.no_grad():
        orion.fit(net, x[:1])
        level = orion.compile(net)
        net.he()
        _say(out, version=version("orion-fhe"), setup_s=time.perf_counter() - start)
        for line in sys.stdin:
            index = int(line)
            encrypted = orion.encrypt(orion.encode(x[index : index + 1], level))
            start = time.perf_counter()
            answer = net(encrypted)
            seconds = time.perf_counter() - start
            _say(out, index=index, seconds=seconds, output=answer.decrypt().decode().flatten().tolist())
    os._exit(0)  # Orion's destructors call into a library that is already gone


if __name__ == "__main__":
    main(sys.argv[1])
