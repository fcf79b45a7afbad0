"""Every error that the runtime raises, in one tree.

    SecateurError
    +-- ModelError          the compressed model is malformed or asks for something unsupported
    +-- PlanError           a plan is malformed, of an unknown version, or does not verify
    +-- DoesNotFit          no parameters, levels, slots or memory can hold the model
    +-- ParameterError      CKKS parameters are invalid or below 128-bit security
    +-- WireError           bytes from outside are not what they claim to be
    +-- CiphertextMismatch  a ciphertext has the wrong level, scale, size or count
    +-- KeyMismatch         an evaluation key is missing, or made for other parameters
    +-- InputError          an input array has the wrong shape, dtype or values
    +-- BackendUnavailable  the HE library behind a backend is not installed
    +-- Cancelled           the caller's deadline or cancellation stopped an evaluation

Each carries a `reason` from the closed set below, which is what crosses the network. A message reads
"cannot X: got A, need B; try C" and never contains a plaintext value, key material or noise.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "BackendUnavailable",
    "Cancelled",
    "CiphertextMismatch",
    "DoesNotFit",
    "InputError",
    "KeyMismatch",
    "ModelError",
    "ParameterError",
    "PlanError",
    "Reason",
    "SecateurError",
    "WireError",
]


class Reason(StrEnum):
    """The closed set of reasons an error can have; the wire carries these names (google.rpc.ErrorInfo.reason)."""

    INTERNAL = "INTERNAL"
    MODEL_INVALID = "MODEL_INVALID"
    MODEL_UNSUPPORTED = "MODEL_UNSUPPORTED"
    MODEL_UNKNOWN = "MODEL_UNKNOWN"
    MODEL_DOES_NOT_FIT = "MODEL_DOES_NOT_FIT"
    PLAN_INVALID = "PLAN_INVALID"
    PLAN_VERSION_UNKNOWN = "PLAN_VERSION_UNKNOWN"
    PARAMETERS_INVALID = "PARAMETERS_INVALID"
    PARAMETERS_INSECURE = "PARAMETERS_INSECURE"
    BYTES_MALFORMED = "BYTES_MALFORMED"
    BYTES_TRUNCATED = "BYTES_TRUNCATED"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    RESIDUE_OUT_OF_RANGE = "RESIDUE_OUT_OF_RANGE"
    VERSION_UNKNOWN = "VERSION_UNKNOWN"
    LEVEL_MISMATCH = "LEVEL_MISMATCH"
    SCALE_MISMATCH = "SCALE_MISMATCH"
    SIZE_MISMATCH = "SIZE_MISMATCH"
    KEY_MISSING = "KEY_MISSING"
    KEY_SET_UNKNOWN = "KEY_SET_UNKNOWN"
    KEY_PARAMETERS_DIFFER = "KEY_PARAMETERS_DIFFER"
    UPLOAD_UNKNOWN = "UPLOAD_UNKNOWN"
    UPLOAD_INCOMPLETE = "UPLOAD_INCOMPLETE"
    UPLOAD_OFFSET_WRONG = "UPLOAD_OFFSET_WRONG"
    JOB_UNKNOWN = "JOB_UNKNOWN"
    JOB_UNFINISHED = "JOB_UNFINISHED"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    INPUT_SHAPE = "INPUT_SHAPE"
    INPUT_NOT_FINITE = "INPUT_NOT_FINITE"
    INPUT_OUT_OF_RANGE = "INPUT_OUT_OF_RANGE"
    BACKEND_UNAVAILABLE = "BACKEND_UNAVAILABLE"
    SERVER_BUSY = "SERVER_BUSY"
    SERVER_DRAINING = "SERVER_DRAINING"
    SERVER_UNREACHABLE = "SERVER_UNREACHABLE"
    SERVER_UNTRUSTED = "SERVER_UNTRUSTED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    WORKER_LOST = "WORKER_LOST"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"


class SecateurError(Exception):
    """Base of all errors of the project; `reason` is machine-readable, the message is for a person."""

    reason: Reason = Reason.INTERNAL

    def __init__(self, message: str, reason: Reason | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason

    @property
    def message(self) -> str:
        return str(self.args[0])


class ModelError(SecateurError):
    """The compressed model is malformed, or a module uses something that cannot be exported."""

    reason = Reason.MODEL_INVALID


class PlanError(SecateurError):
    """A plan does not verify, is truncated, or has a format version this build does not know."""

    reason = Reason.PLAN_INVALID


class DoesNotFit(SecateurError):
    """No admissible parameters hold the model: levels, slots, range or memory run out."""

    reason = Reason.MODEL_DOES_NOT_FIT


class ParameterError(SecateurError):
    """CKKS parameters are inconsistent or outside the security table."""

    reason = Reason.PARAMETERS_INVALID


class WireError(SecateurError):
    """Bytes from outside are truncated, malformed, of the wrong digest, or hold residues above their prime."""

    reason = Reason.BYTES_MALFORMED


class CiphertextMismatch(SecateurError):
    """A ciphertext is not at the level, scale, size or count that the plan states."""

    reason = Reason.LEVEL_MISMATCH


class KeyMismatch(SecateurError):
    """An evaluation key that the plan names is absent, cut too low, or made for other parameters."""

    reason = Reason.KEY_MISSING


class InputError(SecateurError):
    """An input array does not match the model's input: shape, dtype, finiteness or calibrated range."""

    reason = Reason.INPUT_SHAPE


class BackendUnavailable(SecateurError):
    """The library behind a backend is missing; the message names the pip command."""

    reason = Reason.BACKEND_UNAVAILABLE


class Cancelled(SecateurError):
    """The caller cancelled, or its deadline passed, between two operations."""

    reason = Reason.CANCELLED
