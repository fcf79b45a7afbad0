"""`secateur bench tenseal-cnn`: TenSEAL's own high-level API against this project's tenseal back end, same weights."""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import Json, emit, facts_table, say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from rich.console import Console

    from he_runtime import CompressedModel

__all__ = ["tenseal_cnn"]

RECIPE = "mnist-tenseal-cnn"
THREADS = 2
# The parameters of TenSEAL's MNIST tutorial (tutorial 4, "Encrypted convolution on MNIST").
_DEGREE = 8192
_MODULUS_BITS = [31, 26, 26, 26, 26, 26, 26, 31]
_SCALE = 2.0**26


def tenseal_cnn(
    images: Annotated[int, typer.Option(help="How many test images, from the first on.", min=1)] = 20,
    recipe: Annotated[str, typer.Option(help="The recipe that makes the network.")] = RECIPE,
    data: Annotated[Path | None, typer.Option(help="Where data sets lie; SECATEUR_DATA otherwise.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where the trained network is kept between runs.")] = None,
    as_json: Json = False,
) -> None:
    """Time TenSEAL's MNIST tutorial network both ways, interleaved, from encrypted input to encrypted output."""
    import numpy as np

    from he_runtime import compile, run_clear
    from he_runtime.cost.calibrate import machine_name
    from he_runtime.reference import forward, normalize

    from .trained import data_of, trained

    model = trained(recipe, cache, quiet=as_json, data=data)
    dataset = data_of(model, data)
    x = normalize(model.input, dataset.x_test[:images])
    theirs = _Tenseal(model, float(np.abs(forward(model, x)).max()))
    say("planning, making keys and encoding weights ...")
    planned = compile(model, degrees=(_DEGREE,))
    ours = _Ours(planned)
    clear = run_clear(planned, x)
    rounds = []
    for k, sample in enumerate(x):
        rounds.append((theirs.run(sample), ours.run(sample)))
        say(f"image {k + 1} of {len(x)}: TenSEAL {rounds[-1][0][0]:.2f} s, ours {rounds[-1][1][0]:.2f} s")
    tenseal_s, ours_s = (statistics.median(r[side][0] for r in rounds) for side in (0, 1))
    their_logits, our_logits = (np.stack([r[side][1] for r in rounds]) for side in (0, 1))
    record = {
        "tenseal_s": tenseal_s,
        "ours_s": ours_s,
        "ratio": tenseal_s / ours_s,
        "argmax_matches": _matches(our_logits, clear),
        "tenseal_argmax_matches": _matches(their_logits, clear),
        "images": len(x),
        "relative_error": float(np.abs(our_logits - clear).max() / np.abs(clear).max()),
        "tenseal_relative_error": float(np.abs(their_logits - clear).max() / np.abs(clear).max()),
        "N": planned.params.degree,
        "log2_qp": planned.params.log2_qp,
        "tenseal_log2_qp": float(sum(_MODULUS_BITS)),
        "encode_s": ours.encode_s,
        "ratio_with_encoding": tenseal_s / (ours_s + ours.encode_s),
        "threads": THREADS,
        "data": dataset.name,
        "accuracy": model.metadata.get("accuracy", {}).get("final"),
        "machine": machine_name(),
    }
    emit(record, as_json, lambda console: _render(console, record))


def _matches(logits: npt.NDArray[np.float64], clear: npt.NDArray[np.float64]) -> int:
    return int((logits.reshape(clear.shape).argmax(axis=1) == clear.argmax(axis=1)).sum())


class _Ours:
    """This project's executor with its weights encoded; encryption and decryption are outside the timed part."""

    def __init__(self, planned: Any) -> None:
        from he_runtime import Executor
        from he_runtime.backends.tenseal_secret import SecretKey
        from he_runtime.ring import EvaluationKeys

        self._spec = planned.client_spec()
        self._secret = SecretKey.generate(planned.params)
        records = {record.element: record for record in self._secret.make_keys(planned.keys)}
        start = time.perf_counter()
        self._executor = Executor(planned, "tenseal")
        self.encode_s = time.perf_counter() - start
        self._keys = self._executor.load_keys(EvaluationKeys(planned.params.digest, records))

    def run(self, sample: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        """Seconds from encrypted input to encrypted output, and the logits."""
        import numpy as np

        spec = self._spec.input
        encrypted = [self._secret.encrypt(slots, spec.level, spec.scale) for slots in spec.pack(sample)]
        start = time.perf_counter()
        answer = self._executor.run(encrypted, self._keys)
        seconds = time.perf_counter() - start
        return seconds, self._spec.output.unpack(np.stack([self._secret.decrypt(ct) for ct in answer])).ravel()


class _Tenseal:
    """The network in TenSEAL's high-level API, step by step as its tutorial has it. It encodes weights in every call."""

    def __init__(self, model: CompressedModel, largest: float) -> None:
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
        self._context = tenseal.context(kind, _DEGREE, coeff_mod_bit_sizes=_MODULUS_BITS, n_threads=THREADS)
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


def _render(console: Console, record: dict[str, Any]) -> None:
    facts = [
        ("TenSEAL", f"{record['tenseal_s']:.2f} s (encodes its weights in every call)"),
        ("ours", f"{record['ours_s']:.3f} s, after {record['encode_s']:.2f} s of encoding weights, once"),
        ("ratio", f"{record['ratio']:.1f} ({record['ratio_with_encoding']:.1f} if encoding counted every time)"),
        ("argmax", f"{record['argmax_matches']} of {record['images']} as in the clear"),
        (
            "error",
            f"{record['relative_error']:.2%} of the largest logit (TenSEAL {record['tenseal_relative_error']:.2%})",
        ),
        ("parameters", f"N={record['N']}, log2(QP)={record['log2_qp']:.1f} (TenSEAL {record['tenseal_log2_qp']:.0f})"),
        ("data", f"{record['data']}, {record['images']} test images"),
        ("machine", f"{record['machine']}, {record['threads']} threads allowed to both"),
    ]
    console.print(facts_table("TenSEAL's MNIST tutorial network, medians", facts))
