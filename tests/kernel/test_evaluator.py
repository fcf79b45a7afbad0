"""The evaluator's operations against SEAL's, bit for bit, on every path and with several threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("tenseal")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from he_runtime.gadget import SEAL
from he_runtime.params import CkksParams
from tests.kernel.evaluation import U64, Judge, Machine, chain, record, residues

CHAINS: dict[str, tuple[int, list[float], list[float]]] = {
    "1024-narrow": (1024, [40, 30, 30, 30], [45]),
    "1024-mixed": (1024, [60, 24, 55, 59], [60]),
    "1024-small-special": (1024, [50, 59, 45], [30]),
    "1024-one": (1024, [40], [50]),
    "1024-50-bits": (1024, [50, 49.9, 50, 50, 50], [50]),
    "2048-unequal": (2048, [24, 59, 24, 59], [25]),
    "2048-wide-special": (2048, [30, 49, 20], [60]),
    "4096": (4096, [36, 36], [37]),
    "4096-mixed": (4096, [55, 24], [59]),
    "8192": (8192, [49, 49, 49], [49]),
    "8192-mixed": (8192, [59, 30, 49], [45]),
    "16384": (16384, [45, 30, 59], [60]),
}
SEAL_NAMES = {
    "mul": "multiply",
    "mul_plain": "multiply_plain",
    "rescale": "rescale_to_next",
    "mod_switch": "mod_switch_to_next",
}


@pytest.fixture(autouse=True)
def threads(kernel: Any) -> Iterator[None]:
    before = kernel.threads()
    yield
    kernel.set_threads(before)


def rows_of(coefficients: npt.NDArray[np.float64], params: CkksParams, level: int, kernel: Any) -> U64:
    """Integers as residues in evaluation form, by the portable transform of one prime at a time."""
    out = np.empty((level + 1, params.degree), dtype=np.uint64)
    for row, q in zip(out, params.primes, strict=False):
        spread = np.zeros(params.degree, dtype=object)
        spread[:: params.degree // len(coefficients)] = [int(c) % q for c in coefficients]
        kernel.Ntt(params.degree, q, "portable").forward(row, spread.astype(np.uint64))
    return out


def operands(params: CkksParams, level: int) -> dict[str, Any]:
    rng = np.random.default_rng([params.degree, level, params.primes[0] % 1000])
    x, y, product = (residues(rng, params, level, polys) for polys in (2, 2, 3))
    dense = np.rint(rng.normal(scale=2.0**20, size=params.degree))
    sparse = np.rint(rng.normal(scale=2.0**66, size=32))
    return {"x": x, "y": y, "product": product, "dense": dense, "sparse": sparse, "constant": -3}


def cases(params: CkksParams, level: int, given: dict[str, Any]) -> list[tuple[str, tuple[Any, ...]]]:
    """(leaf, operands); an operand by its name, or a Galois element."""
    found: list[tuple[str, tuple[Any, ...]]] = [
        ("add", ("x", "y")),
        ("add", ("product", "x")),
        ("add", ("x", "product")),
    ]
    for plain in ("dense", "sparse", "constant"):
        found += [("add_plain", ("x", plain)), ("mul_plain", ("x", plain)), ("mul_plain", ("product", plain))]
    found += [
        ("add_plain", ("product", "dense")),
        ("mul", ("x", "y")),
        ("square", ("x",)),
        ("relinearize", ("product",)),
    ]
    found += [("apply_galois", ("x", element)) for element in (3, params.conjugation_element)]
    if level:
        found += [(leaf, (of,)) for leaf in ("rescale", "mod_switch") for of in ("x", "product")]
    return found


def expected(params: CkksParams, level: int, given: dict[str, Any], judge: Judge, kernel: Any) -> list[U64]:
    plains = {name: judge.plain(rows_of(given[name], params, level, kernel)) for name in ("dense", "sparse")}
    plains["constant"] = judge.plain(rows_of(np.array([-3.0]), params, level, kernel))
    ready = given | plains
    return [
        judge.call(SEAL_NAMES.get(leaf, leaf), *(ready[o] if isinstance(o, str) else o for o in names))
        for leaf, names in cases(params, level, given)
    ]


def found(machine: Machine, level: int, given: dict[str, Any], keys: dict[int, Any], compact: bool) -> list[U64]:
    ready = dict(given)
    for name in ("dense", "sparse"):
        ready[name] = machine.plain(level, given[name], extended=compact, compact=compact)
    ready["constant"] = machine.constant(level, -3)
    results = []
    for leaf, names in cases(machine.params, level, given):
        arguments = [ready[o] if isinstance(o, str) else o for o in names]
        if leaf == "relinearize":
            arguments.append(keys[0])
        elif leaf == "apply_galois":
            arguments.append(keys[names[1]])
        results.append(machine.call(leaf, *arguments))
    return results


@pytest.mark.parametrize("name", CHAINS)
def test_every_leaf_has_seals_bits(kernel: Any, paths: list[str], name: str) -> None:
    params = chain(*CHAINS[name])
    elements = (0, 3, params.conjugation_element)
    judge = Judge(params, [record(params, element, params.max_level, SEAL) for element in elements])
    machines = [Machine.make(kernel, params, path) for path in paths]
    keys = [machine.keys(elements, params.max_level) for machine in machines]
    for level in range(params.max_level, -1, -1):
        given = operands(params, level)
        wanted = expected(params, level, given, judge, kernel)
        for machine, its_keys in zip(machines, keys, strict=True):
            for threads, compact in ((1, False), (3, True)):
                kernel.set_threads(threads)
                got = found(machine, level, given, its_keys, compact)
                for (leaf, names), a, b in zip(cases(params, level, given), got, wanted, strict=True):
                    message = f"{leaf}{names} at level {level} on {machine.ring.path} with {threads} threads"
                    np.testing.assert_array_equal(a, b, err_msg=message)


@pytest.mark.parametrize("name", ["1024-narrow", "1024-mixed"])
def test_a_key_cut_to_a_level_has_seals_bits_there_and_below(kernel: Any, paths: list[str], name: str) -> None:
    params = chain(*CHAINS[name])
    judge = Judge(params, [record(params, element, 2, SEAL) for element in (0, 5)])
    for path in paths:
        machine = Machine.make(kernel, params, path)
        keys = machine.keys((0, 5), 2)
        for level in (2, 1, 0):
            given = operands(params, level)
            turned, linear = judge.call("apply_galois", given["x"], 5), judge.call("relinearize", given["product"])
            np.testing.assert_array_equal(machine.call("apply_galois", given["x"], 5, keys[5]), turned, err_msg=path)
            np.testing.assert_array_equal(machine.call("relinearize", given["product"], keys[0]), linear, err_msg=path)


@pytest.mark.parametrize("name", ["1024-narrow", "1024-mixed", "1024-small-special", "2048-unequal"])
def test_coefficients_where_rounding_turns_have_seals_bits(kernel: Any, paths: list[str], name: str) -> None:
    """Residues next to 0 and to half their prime, in coefficient form: rows of a division, and digits of a switch."""
    params = chain(*CHAINS[name])
    top, rng = params.max_level, np.random.default_rng(3)
    judge = Judge(params, [record(params, element, top, SEAL) for element in (0, 3)])
    polys = np.empty((3, top + 1, params.degree), dtype=np.uint64)
    for j, q in enumerate(params.primes):
        ends = np.array([0, 1, q // 2 - 1, q // 2, q // 2 + 1, q // 2 + 2, q - 1], dtype=np.uint64)
        for row in polys[:, j]:
            kernel.Ntt(params.degree, q, "portable").forward(row, rng.choice(ends, params.degree))
    for path in paths:
        machine = Machine.make(kernel, params, path)
        for level in range(1, top + 1):
            x = np.ascontiguousarray(polys[:, : level + 1])
            wanted = judge.call("rescale_to_next", x)
            np.testing.assert_array_equal(machine.call("rescale", x), wanted, err_msg=f"{path}, level {level}")
            wanted = judge.call("relinearize", x)
            np.testing.assert_array_equal(machine.call("relinearize", x, machine.key(0, top)), wanted, err_msg=path)
            wanted = judge.call("apply_galois", x[:2], 3)
            np.testing.assert_array_equal(
                machine.call("apply_galois", x[:2], 3, machine.key(3, top)), wanted, err_msg=path
            )


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["1024-narrow", "1024-mixed", "1024-small-special", "1024-50-bits"]),
    leaf=st.sampled_from(["mul", "square", "relinearize", "apply_galois", "rescale"]),
    down=st.integers(0, 3),
    element=st.sampled_from([3, 9, 2047]),
    extreme=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1 << 32),
    threads=st.sampled_from([1, 2, 3]),
)
def test_any_residues_have_seals_bits(
    kernel: Any,
    paths: list[str],
    name: str,
    leaf: str,
    down: int,
    element: int,
    extreme: float,
    seed: int,
    threads: int,
) -> None:
    params = chain(*CHAINS[name])
    top = params.max_level
    level = max(top - down, 1 if leaf == "rescale" else 0)
    rng = np.random.default_rng(seed)
    records = [record(params, 0, top, SEAL), record(params, element, top, SEAL)]
    inputs = [residues(rng, params, level, 3 if leaf == "relinearize" else 2, extreme)]
    if leaf == "mul":
        inputs.append(residues(rng, params, level, 2, extreme))
    extra = [element] if leaf == "apply_galois" else []
    wanted = Judge(params, records).call(SEAL_NAMES.get(leaf, leaf), *inputs, *extra)
    kernel.set_threads(threads)
    for path in paths:
        machine = Machine.make(kernel, params, path)
        switched = {"relinearize": [0], "apply_galois": [element]}.get(leaf, [])
        got = machine.call(leaf, *inputs, *extra, *(machine.key(e, top) for e in switched))
        np.testing.assert_array_equal(got, wanted, err_msg=path)
