"""TenSEAL's MNIST tutorial (tutorial 4, "Encrypted convolution on MNIST") in its own high-level API: the baseline."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from he_runtime import CompressedModel

__all__ = ["DEGREE", "MODULUS_BITS", "TensealTutorial"]

# The tutorial's parameters.
DEGREE = 8192
MODULUS_BITS = [31, 26, 26, 26, 26, 26, 26, 31]
_SCALE = 2.0**26


class TensealTutorial:
    """The network in TenSEAL's high-level API, step by step as its tutorial has it. It encodes weights in every call."""

    def __init__(self, model: CompressedModel, largest: float, threads: int) -> None:
        """Outputs up to `largest` in magnitude: its parameters leave 31 - 26 bits above the scale, so larger ones wrap.

        A power of two in the last layer, undone after decryption, keeps them in; the tutorial has no such guard.
        """
        import tenseal

        self._ts = tenseal
        (conv, conv_bias, stride), (fc1, bias1), (fc2, bias2) = _weights(model)
        self._kernel, self._stride = conv.shape[2:], stride
        self._conv, self._conv_bias = [k.tolist() for k in conv[:, 0]], conv_bias.tolist()
        self._fc1, self._bias1 = fc1.T.tolist(), bias1.tolist()
        self._shrink = 2.0 ** min(0, 3 - math.ceil(math.log2(largest)))
        self._fc2, self._bias2 = (self._shrink * fc2.T).tolist(), (self._shrink * bias2).tolist()
        kind = tenseal.SCHEME_TYPE.CKKS
        self._context = tenseal.context(kind, DEGREE, coeff_mod_bit_sizes=MODULUS_BITS, n_threads=threads)
        self._context.global_scale = _SCALE
        self._context.generate_galois_keys()

    def run(self, sample: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        """Seconds from encrypted input to encrypted output, and the logits."""
        import numpy as np

        rows, columns = self._kernel
        encrypted, windows = self._ts.im2col_encoding(self._context, sample[0].tolist(), rows, columns, self._stride)
        start = time.perf_counter()
        answer = self._evaluate(encrypted, windows)
        seconds = time.perf_counter() - start
        return seconds, np.array(answer.decrypt()) / self._shrink

    def _evaluate(self, encrypted: Any, windows: int) -> Any:
        pairs = zip(self._conv, self._conv_bias, strict=True)
        channels = [encrypted.conv2d_im2col(kernel, windows) + bias for kernel, bias in pairs]
        packed = self._ts.CKKSVector.pack_vectors(channels)
        packed.square_()
        hidden = packed.mm(self._fc1) + self._bias1
        hidden.square_()
        return hidden.mm(self._fc2) + self._bias2


def _weights(model: CompressedModel) -> tuple[Any, Any, Any]:
    """((conv weight, bias, stride), (fc1 weight, bias), (fc2 weight, bias)), with the squares' factors moved into them.

    Raises ModelError unless the model is conv2d, square, dense, square, dense.
    """
    import numpy as np

    from he_runtime.errors import ModelError

    nodes = [node for node in model.nodes if node.op != "reshape"]
    if [node.op for node in nodes] != ["conv2d", "quadratic", "dense", "quadratic", "dense"]:
        raise ModelError(
            f"cannot run {model.name!r} in TenSEAL: got {[n.op for n in nodes]}, need the tutorial's layers"
        )
    linear = []
    for node in nodes[::2]:
        weight, bias = model.array(node, "weight"), model.array(node, "bias")
        assert weight is not None
        linear.append([weight, np.zeros(len(weight)) if bias is None else bias])
    for k, node in enumerate(nodes[1::2]):
        a, b, c = (model.array(node, role) for role in "abc")
        if a is None or (a < 0).any() or np.any(b) or np.any(c):
            raise ModelError(f"cannot run {model.name!r} in TenSEAL: {node.name!r} is not a square")
        root = np.sqrt(np.broadcast_to(a, len(linear[k][1])))
        linear[k] = [w * root.reshape((-1,) + (1,) * (w.ndim - 1)) for w in linear[k]]
    stride = int(nodes[0].attrs["stride"][0])
    return (*linear[0], stride), tuple(linear[1]), tuple(linear[2])
