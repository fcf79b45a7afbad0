"""Distrust the server: read its client spec with limits, and refuse what would endanger the key or this machine.

A hostile server wins if it can make the client encrypt under weak parameters: then it recovers the secret from the
public data it is sent. So the security bound is recomputed here from the integers themselves, exactly and without
relying on what the parameter record claims about itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from he_runtime.client_spec import ClientSpec, TensorSpec
from he_runtime.errors import ParameterError, PlanError, Reason
from he_runtime.params import MAX_LOG2_QP, CkksParams, is_prime
from he_runtime.wire import key_set_byte_size

from .errors import ServerUntrusted
from .limits import Limits

__all__ = ["check_spec", "parse_spec", "require_printable"]

_MAX_DIMENSIONS = 8
_LARGER_LIMITS = "try a larger client.Limits if you trust this server"
_LARGEST = 1e30  # of numbers in a spec; their quotients still fit a double


def parse_spec(data: bytes, limits: Limits) -> ClientSpec:
    """The server's bytes -> a checked ClientSpec.

    Raises ServerUntrusted for anything malformed or over the limits, ParameterError (PARAMETERS_INSECURE) for
    parameters outside the table, PlanError (VERSION_UNKNOWN) for a spec of another version.
    """
    if len(data) > limits.max_spec_bytes:
        raise ServerUntrusted(
            f"cannot use the server's spec: got {len(data)} bytes, need at most {limits.max_spec_bytes}"
        )
    _check_counts(data, limits)
    try:
        spec = ClientSpec.parse(data)
    except (ParameterError, PlanError) as error:
        if error.reason in (Reason.PARAMETERS_INSECURE, Reason.VERSION_UNKNOWN):
            raise
        raise ServerUntrusted(f"cannot use the server's spec: {error.message[:500]}") from error
    check_spec(spec, limits)
    return spec


def check_spec(spec: ClientSpec, limits: Limits) -> None:
    """Raise unless making and uploading this spec's keys, and encrypting under it, is safe and within the limits.

    Raises ParameterError (PARAMETERS_INSECURE) for parameters outside the security table or marked INSECURE,
    ServerUntrusted (SERVER_UNTRUSTED) for everything else.
    """
    _check_security(spec.params)
    _check_keys(spec, limits)
    _check_texts(spec, limits)
    for role, tensor in (("input", spec.input), ("output", spec.output)):
        _check_tensor(role, tensor, spec.params, limits)
    _check_numbers(spec)


def _check_counts(data: bytes, limits: Limits) -> None:
    """Bound the counts before the real parser allocates slot maps, key requests and labels for them."""
    try:
        record: Any = json.loads(data)
        counts = (
            ("keys", len(record["keys"]), limits.max_keys),
            ("labels", len(record["labels"]), limits.max_labels),
            ("input ciphertexts", int(record["input"]["ciphertexts"]), limits.max_ciphertexts),
            ("output ciphertexts", int(record["output"]["ciphertexts"]), limits.max_ciphertexts),
            ("input dimensions", len(record["input"]["shape"]), _MAX_DIMENSIONS),
            ("output dimensions", len(record["output"]["shape"]), _MAX_DIMENSIONS),
        )
    except Exception as error:  # hostile JSON may fail in any way, RecursionError included
        raise ServerUntrusted(f"cannot use the server's spec: got malformed JSON ({type(error).__name__})") from error
    for what, count, most in counts:
        if count > most:
            raise ServerUntrusted(
                f"cannot use the server's spec: it asks for {count} {what}, need at most {most}", _LARGER_LIMITS
            )


def _check_security(params: CkksParams) -> None:
    every = (*params.primes, *params.special)
    limit = MAX_LOG2_QP.get(params.degree)
    if params.insecure or limit is None:
        raise ParameterError(
            f"cannot use the server's parameters {params.name}: they are marked INSECURE or have no row in the "
            "security table, need 128-bit security; try another server, and never send data under them",
            Reason.PARAMETERS_INSECURE,
        )
    wrong = [q for q in every if not is_prime(q) or q % (2 * params.degree) != 1]
    if wrong or len(set(every)) != len(every) or not params.primes or not params.special:
        raise ServerUntrusted(
            f"cannot use the server's parameters: {len(wrong)} of {len(every)} moduli are not primes that are "
            f"1 mod {2 * params.degree}, or one occurs twice; need distinct ones"
        )
    if math.prod(every) > 1 << limit:  # exact, where a sum of logarithms is rounded
        raise ParameterError(
            f"cannot use the server's parameters: log2(QP) is {math.log2(math.prod(every)):.2f} at N={params.degree}, "
            f"need at most {limit} for 128-bit security; try another server, and never send data under them",
            Reason.PARAMETERS_INSECURE,
        )


def _check_keys(spec: ClientSpec, limits: Limits) -> None:
    count = len(spec.keys.requests)
    if count > limits.max_keys:
        raise ServerUntrusted(
            f"cannot make the server's keys: it asks for {count}, need at most {limits.max_keys}", _LARGER_LIMITS
        )
    size = key_set_byte_size(spec.keys, spec.params, seeded=True)
    if size > limits.max_key_bytes:
        raise ServerUntrusted(
            f"cannot make the server's keys: they take {size} bytes, need at most {limits.max_key_bytes}",
            _LARGER_LIMITS,
        )


def _check_texts(spec: ClientSpec, limits: Limits) -> None:
    """Names and labels end up in terminals and logs: bounded, and printable so that no escape sequence gets there."""
    if len(spec.labels) > limits.max_labels:
        raise ServerUntrusted(
            f"cannot use the server's spec: got {len(spec.labels)} labels, need at most {limits.max_labels}"
        )
    require_printable(
        (spec.model, spec.version, spec.plan_digest, spec.input.name, spec.output.name, *spec.labels), limits
    )


def require_printable(texts: Iterable[str], limits: Limits) -> None:
    """Raise ServerUntrusted for a text of the server that is too long, or would do something to a terminal."""
    for text in texts:
        if len(text) > limits.max_text_chars or not text.isprintable():
            raise ServerUntrusted(
                f"cannot use what the server says: a name or label of {len(text)} characters is too long or not "
                f"printable, need printable ones of at most {limits.max_text_chars} characters"
            )


def _check_tensor(role: str, tensor: TensorSpec, params: CkksParams, limits: Limits) -> None:
    if not 1 <= tensor.ciphertexts <= limits.max_ciphertexts or len(tensor.shape) > _MAX_DIMENSIONS:
        raise ServerUntrusted(
            f"cannot use the server's {role}: {tensor.ciphertexts} ciphertexts of {len(tensor.shape)} dimensions, "
            f"need at most {limits.max_ciphertexts} and {_MAX_DIMENSIONS}",
            _LARGER_LIMITS,
        )
    log2_scale = math.log2(tensor.scale) if math.isfinite(tensor.scale) and tensor.scale > 0 else math.nan
    fits = log2_scale < params.log2_q(tensor.level)
    if not (limits.min_log2_scale <= log2_scale <= limits.max_log2_scale and fits):
        raise ServerUntrusted(
            f"cannot use the server's {role}: its scale is 2^{log2_scale:.1f}, need 2^{limits.min_log2_scale:g} to "
            f"2^{limits.max_log2_scale:g} and below the modulus"
        )


def _check_numbers(spec: ClientSpec) -> None:
    numbers = (*spec.mean, *spec.std, spec.low, spec.high, spec.error_bound)
    usable = all(abs(v) <= _LARGEST for v in numbers) and all(abs(v) >= 1 / _LARGEST for v in spec.std)
    if not usable or spec.low > spec.high or spec.error_bound < 0:
        raise ServerUntrusted(
            "cannot use the server's spec: its normalization, calibrated range or error bound is absurd, need finite "
            f"numbers, low <= high, a std of at least {1 / _LARGEST:g} and a bound of at least 0"
        )
