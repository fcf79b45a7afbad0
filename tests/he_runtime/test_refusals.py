"""Models that cannot fit: refused before any key is made, naming the layer, what is missing and what would fit."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from he_runtime import CompressedModel, compile
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.cost import load_default
from he_runtime.cost.memory import memory
from he_runtime.errors import DoesNotFit, Reason
from he_runtime.model import InputSpec, OutputSpec
from he_runtime.params import DEGREES, CkksParams
from he_runtime.refusals import OutOfRange, out_of_range
from tests.he_runtime.networks import Builder, mlp


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes a key in this module fails."""

    def made(_: CkksParams) -> None:
        raise AssertionError("a key was made")

    monkeypatch.setattr(SecretKey, "generate", made)


def refusal(model: CompressedModel, **options: object) -> str:
    """What compile says; it must be one line that names the model and something to try."""
    with pytest.raises(DoesNotFit) as caught:
        compile(model, **options)  # type: ignore[arg-type]
    message = caught.value.message
    assert caught.value.reason is Reason.MODEL_DOES_NOT_FIT
    assert f"cannot plan model {model.name!r}: no ring degree of" in message
    assert "; try " in message and "\n" not in message
    return message


def found(pattern: str, message: str) -> tuple[str, ...]:
    match = re.search(pattern, message)
    assert match is not None, message
    return match.groups()


def squares(count: int) -> Builder:
    """That many dense layers of 8, each with a square behind it: one level each."""
    b = Builder((8,))
    for _ in range(count):
        b.dense(8, 8)
        b.square((8,))
    b.dense(8, 2)
    return b


def test_too_deep_for_a_ring_names_the_layer_and_a_ring_that_holds_it() -> None:
    model = squares(2).calibrated()
    message = refusal(model, degrees=(4096,), max_error=1.0)
    layer, missing, ring = found(r"run out at layer '(\w+)', (\d+) missing; try N=(\d+)", message)
    assert (layer, missing, ring) == ("quadratic3", "1", "8192"), "one square fits, the second does not"
    assert compile(model, degrees=(8192,), max_error=1.0).params.degree == int(ring)


def test_too_deep_for_all_rings_says_how_much_to_leave_out() -> None:
    deep = squares(40)
    message = refusal(uncalibrated(deep), max_error=1.0)
    levels, bits, layer, missing, fewer = found(
        r"cannot hold (\d+) levels in (\d+) bits: .* at layer '(\w+)', (\d+) missing; try (\d+) activations fewer",
        message,
    )
    assert (levels, bits, missing) == ("40", "868", fewer)
    activations = [n.name for n in deep.nodes if n.op == "quadratic"]
    assert layer == activations[40 - int(missing)]


def test_too_deep_by_a_polynomial_names_a_degree() -> None:
    b = Builder((8,))
    for _ in range(5):
        b.dense(8, 8)
        coefficients = np.ones(32) / 32
        b.add("polynomial", (8,), {"basis": "chebyshev", "low": -3.0, "high": 3.0}, coefficients=coefficients)
    b.dense(8, 2)
    message = refusal(uncalibrated(b), max_error=1.0)
    missing, degree, layer = found(r"(\d+) missing; try a polynomial of degree (\d+) or less in layer '(\w+)'", message)
    assert int(degree) == 2 ** (5 - int(missing))
    assert layer.startswith("polynomial")


def uncalibrated(b: Builder) -> CompressedModel:
    """For a model whose ranges are of no account."""
    return CompressedModel("net", InputSpec("x", b.shape), OutputSpec(b.last), tuple(b.nodes), b.arrays)


def scaled(first_bits: float, last_bits: float) -> CompressedModel:
    """dense, square, dense with weights scaled by powers of two."""
    b = Builder((16,))
    for bits in (first_bits, last_bits):
        b.dense(16, 16)
        b.arrays[f"{b.last}.weight"] *= 2.0**bits
        if bits == first_bits:
            b.square((16,))
    return b.calibrated()


def test_an_output_out_of_range_says_by_how_many_bits() -> None:
    message = refusal(scaled(0, 45), max_error=2.0**45)
    layer, missing, power = found(
        r"output of layer '(\w+)': .* bits, ([\d.]+) more than there are; try weights 2\^(\d+) times smaller", message
    )
    assert layer == "dense2" and int(power) == math.ceil(float(missing)) > 0
    compile(scaled(0, 45 - int(power)), max_error=2.0**45)


def test_a_layer_out_of_range_says_by_how_many_bits() -> None:
    model = scaled(22, -47)
    message = refusal(model, degrees=(8192,), max_error=1.0)
    layer, need, have, missing, power = found(
        r"hold layer '(\w+)': values need ([\d.]+) bits at level \d+, the modulus has ([\d.]+), ([\d.]+) missing; try values "
        r"2\^(\d+) times smaller there",
        message,
    )
    assert layer == "quadratic1"
    assert float(need) - float(have) == pytest.approx(float(missing), abs=0.11)
    half = math.ceil(int(power) / 2)  # of the weights before the square
    with pytest.raises(DoesNotFit, match="cannot hold the error"):  # the range fits now
        compile(scaled(22 - half, -47 + 2 * half), degrees=(8192,), max_error=1e-30)


def test_the_missing_bits_are_a_number_too() -> None:
    error = out_of_range("conv", 2, 70.25, 60.0)
    assert isinstance(error, OutOfRange) and error.missing_bits == 10.25
    assert "2^11 times smaller" in error.message


def test_an_error_out_of_budget_says_by_how_many_bits() -> None:
    model = mlp().calibrated()
    table = load_default("tenseal")
    bound = compile(model, degrees=(8192,), max_error=1.0, table=table, pitched=False).error_bound
    message = refusal(model, degrees=(8192,), max_error=bound / 4, table=table)
    stated, missing, layer = found(
        r"bound is ([\d.e-]+), .* ([\d.]+) bits missing; the widest .* layer '(\w+)'", message
    )
    assert float(stated) == pytest.approx(bound, rel=0.01)
    assert float(missing) == pytest.approx(2, abs=0.06)
    assert layer in {node.name for node in model.nodes}
    assert "try N=16384" in message
    last = refusal(model, degrees=DEGREES[-1:], max_error=1e-13)
    (enough,) = found(r"try a bound of ([\d.e-]+)", last)
    compile(model, degrees=DEGREES[-1:], max_error=float(enough))


def wide(inputs: int) -> CompressedModel:
    """Two outputs of many inputs, eight of them in use."""
    b = Builder((inputs,))
    weight = np.zeros((2, inputs))
    weight[:, :: inputs // 8] = 0.5
    b.add("dense", (2,), weight=weight)
    model = b.calibrated()
    return model.with_(arrays={k: v for k, v in model.arrays.items() if k != "stats.samples"})


def test_too_many_ciphertexts_name_the_layer_and_a_ring() -> None:
    model = wide(64 * 2048 + 1)
    message = refusal(model, degrees=(4096,), max_error=1.0)
    assert (
        "layer 'x': 131,073 elements take 65 ciphertexts of 2,048 slots, 1 more than the 64 allowed; try N=8192"
        in message
    )
    assert len(compile(model, degrees=(8192,), max_error=1.0).inputs[0].values) <= 64


def test_too_many_ciphertexts_for_all_rings() -> None:
    message = refusal(wide(64 * 16384 + 1), max_error=1.0)
    assert "try at most 1,048,576 elements there" in message


def test_too_large_a_batch_names_one_that_fits() -> None:
    assert "cannot pack a batch of 4096 into 2048 slots; try 2048" in refusal(
        mlp().calibrated(), degrees=(4096,), batch=4096
    )


def test_too_much_memory_names_what_takes_most_and_a_limit() -> None:
    model = mlp().calibrated()
    table = load_default("tenseal")
    plan = compile(model, max_error=1.0, table=table)
    need = memory(plan).total
    message = refusal(model, max_error=1.0, max_bytes=need // 2, table=table)
    assert f"need {need / 1e6:,.0f} MB at N={plan.params.degree}" in message
    part, size, layer, limit = found(
        r"missing; ([\w ]+) take (\d+) MB, most of them for layer '(\w+)'; try a limit of (\d+) MB", message
    )
    held = {
        "encoded weights": memory(plan).plaintexts,
        "keys": memory(plan).keys,
        "ciphertexts": memory(plan).ciphertexts,
    }
    assert held[part] == max(held.values()) and int(size) == round(held[part] / 1e6)
    assert layer in {node.name for node in model.nodes}
    assert compile(model, max_error=1.0, max_bytes=int(limit) * 10**6, table=table).digest == plan.digest
