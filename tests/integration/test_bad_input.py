"""Inputs that a model cannot take: refused by the client before anything is sent, in words that help."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from client import Client, RangeWarning, ServerError
from he_runtime.errors import InputError
from tests.integration.refusals import raised
from tests.integration.stack import MODELS, sample

pytestmark = pytest.mark.usefixtures("still_serving")

QUICK, OTHER = MODELS
X = sample(QUICK)  # (2, 9, 9)
NUMBER = "0.123456789"  # a value that no message may repeat


def _changed(value: float) -> Any:
    x = X.copy()
    x[0, 0, 0], x[1, 8, 8] = value, float(NUMBER)
    return x


INPUTS: dict[str, tuple[Any, str]] = {
    "a flat array": (X.ravel(), "INPUT_SHAPE"),
    "a transposed image": (X.transpose(1, 2, 0), "INPUT_SHAPE"),
    "a channel too few": (X[:1], "INPUT_SHAPE"),
    "an empty batch": (X[None][:0], "INPUT_SHAPE"),
    "a batch of batches": (X[None, None], "INPUT_SHAPE"),
    "a number": (1.0, "INPUT_SHAPE"),
    "ragged lists": ([[1.0], [1.0, 2.0]], "INPUT_SHAPE"),
    "texts": (np.full(X.shape, "a"), "INPUT_SHAPE"),
    "complex numbers": (X.astype(complex), "INPUT_SHAPE"),
    "objects": (np.full(X.shape, None), "INPUT_SHAPE"),
    "NaN": (_changed(np.nan), "INPUT_NOT_FINITE"),
    "infinity": (_changed(-np.inf), "INPUT_NOT_FINITE"),
    "a batch with one NaN": (np.stack([X, _changed(np.nan)]), "INPUT_NOT_FINITE"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_bad_arrays(client: Client, name: str) -> None:
    x, reason = INPUTS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RangeWarning)
        error = raised(lambda: client.predict(QUICK, x), InputError, reason)
    assert "'x'" in error.message and NUMBER not in error.message
    if reason == "INPUT_SHAPE" and np.asarray(x, dtype=object).dtype != object:
        assert "(2, 9, 9)" in error.message


def test_values_outside_the_calibrated_range_warn_and_name_the_layer(client: Client) -> None:
    x = X.copy()
    x[0, 0, 0], x[1, 2, 3] = 1.5, -1.25
    named = r"input layer 'x' of model 'pooled': got 2 of 162 .* within \[-1, 1\]"
    with pytest.warns(RangeWarning, match=named) as caught:
        assert client.predict(QUICK, x).logits.shape == (5,)
    assert not any(value in str(caught[0].message) for value in ("1.5", "1.25"))


def test_strict_makes_it_an_error(client: Client) -> None:
    error = raised(lambda: client.predict(QUICK, _changed(1.5), strict=True), InputError, "INPUT_OUT_OF_RANGE")
    assert "input layer 'x'" in error.message and "1.5" not in error.message


def test_values_that_would_wrap_are_refused_without_strict(client: Client) -> None:
    with pytest.warns(RangeWarning):
        raised(lambda: client.predict(QUICK, X * 1e30), InputError, "INPUT_OUT_OF_RANGE")


ASKED: dict[str, tuple[str, str | None, str]] = {
    "an unknown model": ("nothing", None, "MODEL_UNKNOWN"),
    "a path": ("../pooled", None, "MODEL_UNKNOWN"),
    "an unknown version": (QUICK, "7", "MODEL_UNKNOWN"),
    "a version of an unknown plan format": (QUICK, "9", "PLAN_VERSION_UNKNOWN"),
}


@pytest.mark.parametrize("name", ASKED)
def test_models_that_are_not_served(client: Client, name: str) -> None:
    model, version, reason = ASKED[name]
    for call in (client.predict, client.prepare, client.spec):
        arguments = (model, X) if call == client.predict else (model,)
        error = raised(lambda c=call, a=arguments: c(*a, version=version), ServerError, reason)
        assert isinstance(error, ServerError)
        assert error.code == ("NOT_FOUND" if reason == "MODEL_UNKNOWN" else "FAILED_PRECONDITION")


def test_an_input_above_the_message_limit_is_not_sent(own: Any, tmp_path: Any) -> None:
    """128 KB of ciphertext, and a server that takes messages of 100 KB."""
    settings = {"LIMITS_MAX_MESSAGE_BYTES": "100000", "LIMITS_MAX_CHUNK_BYTES": "65536"}
    with own(**settings) as served, served.connect(tmp_path / "home") as client:
        error = raised(lambda: client.predict(QUICK, X), ServerError, "LIMIT_EXCEEDED")
        assert "100000" in error.message
