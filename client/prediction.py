"""What a prediction holds, and the post-processing that a client spec names as data."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from he_runtime.client_spec import ClientSpec

__all__ = ["Prediction", "Timings", "post_process"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds, summed over the samples of a call. `round_trip` includes `server_evaluate`."""

    encrypt_seconds: float = 0.0
    round_trip_seconds: float = 0.0
    server_queue_seconds: float = 0.0
    server_load_seconds: float = 0.0
    server_evaluate_seconds: float = 0.0
    decrypt_seconds: float = 0.0

    def __add__(self, other: Timings) -> Timings:
        return Timings(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True, eq=False)
class Prediction:
    """The decrypted answer for one sample, or for a batch of B samples.

    `logits` is (*output shape), with a leading B for a batch. `index` is the largest output: an int, or (B,) integers
    for a batch, and None where the spec names no post-processing. `label` is its name: a string, a tuple of B strings,
    or None without labels. `probabilities` has the shape of `logits` where the spec names softmax.

    `up_bytes` and `down_bytes` are the ciphertexts sent and received, `key_bytes` the size of the key set that the
    model needs, `uploaded_bytes` what of it this call had to send. `error_bound` is the predicted bound on the
    error of a logit. `counts` are the operations that the server says it executed, for the whole call.

    The decrypted values carry noise that depends on the secret key: keep them to yourself.
    """

    logits: Floats
    index: int | npt.NDArray[np.int64] | None
    label: str | tuple[str, ...] | None
    probabilities: Floats | None
    timings: Timings
    up_bytes: int
    down_bytes: int
    key_bytes: int
    uploaded_bytes: int
    error_bound: float
    counts: dict[str, int] = field(default_factory=dict)


def post_process(
    spec: ClientSpec, logits: Floats, single: bool
) -> tuple[Floats, int | npt.NDArray[np.int64] | None, str | tuple[str, ...] | None, Floats | None]:
    """Logits (B, *output shape) -> logits, index, label, probabilities of a Prediction; one sample if `single`."""
    flat = logits.reshape(len(logits), -1)
    index = probabilities = names = None
    if spec.post_processing != "none":
        index = flat.argmax(axis=1)
        names = tuple(spec.labels[i] for i in index) if spec.labels else None
    if spec.post_processing == "softmax":
        powers = np.exp(flat - flat.max(axis=1, keepdims=True))
        probabilities = (powers / powers.sum(axis=1, keepdims=True)).reshape(logits.shape)
    if not single:
        return logits, index, names, probabilities
    return (
        logits[0],
        None if index is None else int(index[0]),
        None if names is None else names[0],
        None if probabilities is None else probabilities[0],
    )
