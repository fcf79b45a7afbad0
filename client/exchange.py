"""Samples to ciphertext bytes, and reply bytes to numbers, with every check before encrypting and decrypting."""

from __future__ import annotations

import math
import sys
import warnings
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from he_runtime.client_spec import ClientSpec
from he_runtime.errors import CiphertextMismatch, InputError, ParameterError, Reason
from he_runtime.model import InputSpec
from he_runtime.reference import normalize
from he_runtime.ring import CiphertextData
from he_runtime.wire import ciphertexts_byte_size, decode_ciphertexts, encode_ciphertexts

from .errors import RangeWarning, ServerUntrusted

if TYPE_CHECKING:
    from he_runtime.backends.tenseal_secret import SecretKey

__all__ = ["check_input", "decode_reply", "decrypt", "encrypt"]

Floats = npt.NDArray[np.float64]
_REMEDY = "try another server, or ask its operator"
_SCALE_TOLERANCE = 2.0**-40  # rounding of a scale that two programs tracked in double precision


def check_input(spec: ClientSpec, x: npt.ArrayLike, strict: bool) -> tuple[Floats, bool]:
    """One sample (*shape) or a batch (B, *shape) -> normalized (B, *shape), and whether it was one sample.

    Raises InputError for a wrong shape, an empty batch, a non-numeric array, NaN or infinite values, values too large
    for the modulus, and with `strict` for values outside the calibrated range (otherwise a RangeWarning).
    """
    values = _as_floats(spec, x)
    shape = spec.input.shape
    single = values.shape == shape
    if single:
        values = values[None]
    if values.shape[1:] != shape or len(values) == 0:
        got = values.shape[1:] if single else values.shape
        raise InputError(
            f"cannot encrypt input {spec.input.name!r}: got an array of shape {got}, need {shape} for one sample or "
            f"(B, {', '.join(map(str, shape))}) for a batch; try x.reshape(-1, {', '.join(map(str, shape))})"
        )
    description = InputSpec(spec.input.name, shape, spec.mean, spec.std, spec.low, spec.high)
    normalized = normalize(description, values)
    _check_range(spec, values, strict)
    largest = max(1.0, float(np.abs(normalized).max()))
    room_bits = spec.params.log2_q(spec.input.level) - 2  # sign and noise
    if math.log2(largest) + math.log2(spec.input.scale) > room_bits:
        raise InputError(
            f"cannot encrypt input {spec.input.name!r}: got values too large for the modulus, need values within "
            f"[{spec.low:g}, {spec.high:g}]; try the preprocessing that the model was trained with",
            Reason.INPUT_OUT_OF_RANGE,
        )
    return normalized, single


def _as_floats(spec: ClientSpec, x: npt.ArrayLike) -> Floats:
    try:
        array = np.asarray(x)
        if array.dtype.kind not in "fiub":
            raise TypeError
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"cannot encrypt input {spec.input.name!r}: got something that is not a rectangular array of real numbers; "
            "try numpy.asarray(x, dtype=float)"
        ) from error


def _check_range(spec: ClientSpec, values: Floats, strict: bool) -> None:
    outside = int(((values < spec.low) | (values > spec.high)).sum())
    if not outside:
        return
    text = (
        f"input layer {spec.input.name!r} of model {spec.model!r}: got {outside} of {values.size} values outside the "
        f"calibrated range, need values within [{spec.low:g}, {spec.high:g}]; "
        "try the preprocessing that the model was trained with"
    )
    if strict:
        raise InputError(f"cannot encrypt {text}", Reason.INPUT_OUT_OF_RANGE)
    warnings.warn(f"the answer may be wrong: {text}", RangeWarning, stacklevel=_levels_up())


def _levels_up() -> int:
    """Of the stack, from the caller of this to the program that called the client, however many coroutines lie between."""
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and frame.f_globals.get("__package__") == __package__:
        frame, level = frame.f_back, level + 1
    return level


def encrypt(spec: ClientSpec, secret: SecretKey, samples: Floats) -> bytes:
    """Normalized samples (n, *shape), at most the plan's batch -> the codec object of the ciphertexts they share."""
    slots = spec.input.pack(samples)
    level, scale = spec.input.level, spec.input.scale
    return encode_ciphertexts([secret.encrypt(row, level, scale) for row in slots], spec.params)


def decode_reply(spec: ClientSpec, data: bytes) -> list[CiphertextData]:
    """The server's bytes -> ciphertexts that are what the spec promised, or an error before anything is decrypted.

    Raises WireError for malformed bytes, CiphertextMismatch for a wrong level, scale or size, ServerUntrusted for
    a wrong count or an oversized reply.
    """
    want = spec.output
    most = ciphertexts_byte_size(want.ciphertexts, spec.params.max_level, spec.params, polys=3)
    if len(data) > most:
        raise ServerUntrusted(f"cannot use the reply: got {len(data)} bytes, need at most {most} for {want.name!r}")
    try:
        ciphertexts = decode_ciphertexts(data, spec.params, max_count=want.ciphertexts)
    except ParameterError as error:
        raise ServerUntrusted(
            f"cannot use the reply: got one under other parameters than {spec.params.name}"
        ) from error
    if len(ciphertexts) != want.ciphertexts:
        raise ServerUntrusted(f"cannot use the reply: got {len(ciphertexts)} ciphertexts, need {want.ciphertexts}")
    for ciphertext in ciphertexts:
        _check_ciphertext(spec, ciphertext)
    return ciphertexts


def _check_ciphertext(spec: ClientSpec, ciphertext: CiphertextData) -> None:
    want = spec.output
    if ciphertext.level != want.level:
        raise CiphertextMismatch(
            f"cannot decrypt the reply: got level {ciphertext.level}, need {want.level}; {_REMEDY}"
        )
    if not math.isclose(ciphertext.scale, want.scale, rel_tol=_SCALE_TOLERANCE):
        raise CiphertextMismatch(
            f"cannot decrypt the reply: got a scale of {ciphertext.scale:.17g}, need {want.scale:.17g}; {_REMEDY}",
            Reason.SCALE_MISMATCH,
        )
    if len(ciphertext.polys) != 2 or not all(isinstance(p, np.ndarray) for p in ciphertext.polys):
        raise CiphertextMismatch(
            f"cannot decrypt the reply: got a ciphertext of {len(ciphertext.polys)} polynomials, need 2 full ones; {_REMEDY}",
            Reason.SIZE_MISMATCH,
        )


def decrypt(spec: ClientSpec, secret: SecretKey, ciphertexts: list[CiphertextData], count: int) -> Floats:
    """Checked ciphertexts -> the outputs of the `count` samples in them, (count, *output shape)."""
    return spec.output.unpack(np.stack([secret.decrypt(c) for c in ciphertexts]), count)
