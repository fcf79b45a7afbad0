"""What comes in from Python: whatever does not fit raises, and nothing is read or written out of bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tenseal")

from tests.kernel.world import N, World, world


def array(w: World, rows: int = 2, value: int = 0, n: int = N, dtype: Any = np.uint64) -> Any:
    return np.full((rows, n), value, dtype=dtype)


def uploaded(w: World, poly: Any, level: int = 1) -> Any:
    return w.kernel.upload(w.ring, level, [poly, array(w)])


UPLOADS: dict[str, Callable[[World], Any]] = {
    "float64": lambda w: uploaded(w, array(w, dtype=np.float64)),
    "int64": lambda w: uploaded(w, array(w, dtype=np.int64)),
    "uint32": lambda w: uploaded(w, array(w, dtype=np.uint32)),
    "big-endian": lambda w: uploaded(w, array(w, dtype=">u8")),
    "flat": lambda w: uploaded(w, array(w).ravel()),
    "three dimensions": lambda w: uploaded(w, array(w)[None]),
    "more rows": lambda w: uploaded(w, array(w, rows=3)),
    "fewer rows": lambda w: uploaded(w, array(w, rows=1)),
    "longer": lambda w: uploaded(w, array(w, n=2 * N)),
    "shorter": lambda w: uploaded(w, array(w, n=N // 2)),
    "every other value": lambda w: uploaded(w, array(w, n=2 * N)[:, ::2]),
    "every other row": lambda w: uploaded(w, array(w, rows=4)[::2]),
    "rows backwards": lambda w: uploaded(w, array(w)[::-1]),
    "transposed": lambda w: uploaded(w, array(w, rows=N, n=2).T),
    "one row twice": lambda w: uploaded(w, np.broadcast_to(array(w, rows=1), (2, N))),
    "a residue at its prime": lambda w: uploaded(w, array(w, value=w.machine.params.primes[1])),
    "the largest word": lambda w: uploaded(w, array(w, value=2**64 - 1)),
    "a list": lambda w: uploaded(w, array(w).tolist()),
    "none": lambda w: uploaded(w, None),
    "one polynomial": lambda w: w.kernel.upload(w.ring, 1, [array(w)]),
    "four polynomials": lambda w: w.kernel.upload(w.ring, 1, [array(w)] * 4),
    "a level above": lambda w: w.kernel.upload(w.ring, 3, [array(w, rows=4)] * 2),
    "a level below": lambda w: w.kernel.upload(w.ring, -1, [array(w)] * 2),
}
DOWNLOADS: dict[str, Callable[[World], Any]] = {
    "shape": lambda w: w.kernel.download(w.cipher(), np.zeros((2, 3, N), np.uint64)),
    "flat": lambda w: w.kernel.download(w.cipher(), np.zeros(2 * 2 * N, np.uint64)),
    "float64": lambda w: w.kernel.download(w.cipher(), np.zeros((2, 2, N))),
    "strided": lambda w: w.kernel.download(w.cipher(), np.zeros((2, 2, 2 * N), np.uint64)[:, :, ::2]),
    "read-only": lambda w: w.kernel.download(w.cipher(), np.broadcast_to(np.uint64(0), (2, 2, N))),
}
KEYS: dict[str, Callable[[World], Any]] = {
    "too few digits": lambda w: w.kernel.make_key(w.ring, 1, 3, [(array(w, 3), array(w, 3))]),
    "too many digits": lambda w: w.kernel.make_key(w.ring, 1, 3, [(array(w, 3), array(w, 3))] * 3),
    "no special row": lambda w: w.kernel.make_key(w.ring, 1, 3, [(array(w), array(w))] * 2),
    "a residue at its prime": lambda w: w.kernel.make_key(
        w.ring, 1, 3, [(array(w, 3), array(w, 3)), (array(w, 3), array(w, 3, value=w.machine.params.primes[1]))]
    ),
    "an even element": lambda w: w.kernel.make_key(w.ring, 1, 4, [(array(w, 3), array(w, 3))] * 2),
    "element 2n + 1": lambda w: w.kernel.make_key(w.ring, 1, 2 * N + 1, [(array(w, 3), array(w, 3))] * 2),
    "a level above": lambda w: w.kernel.make_key(w.ring, 3, 3, [(array(w, 5), array(w, 5))] * 4),
}
ENCODINGS: dict[str, Callable[[World], Any]] = {
    "three coefficients": lambda w: w.kernel.encode(w.ring, 1, False, np.ones(3), False),
    "none": lambda w: w.kernel.encode(w.ring, 1, False, np.ones(0), False),
    "too many": lambda w: w.kernel.encode(w.ring, 1, False, np.ones(2 * N), True),
    "a fraction": lambda w: w.kernel.encode(w.ring, 1, False, np.full(16, 0.5), False),
    "infinity": lambda w: w.kernel.encode(w.ring, 1, False, np.full(16, np.inf), True),
    "nan": lambda w: w.kernel.encode(w.ring, 1, False, np.full(16, np.nan), True),
    "integers": lambda w: w.kernel.encode(w.ring, 1, False, np.ones(16, np.int64), False),
    "strided": lambda w: w.kernel.encode(w.ring, 1, False, np.ones(32)[::2], False),
    "a level above": lambda w: w.kernel.encode(w.ring, 3, False, np.ones(16), False),
    "too few residues": lambda w: w.kernel.constant(w.ring, 1, True, [1, 1]),
    "too many residues": lambda w: w.kernel.constant(w.ring, 1, False, [1, 1, 1]),
    "a residue at its prime": lambda w: w.kernel.constant(w.ring, 1, False, [1, w.machine.params.primes[1]]),
    "a negative residue": lambda w: w.kernel.constant(w.ring, 1, False, [1, -1]),
}
LEAVES: dict[str, Callable[[World], Any]] = {
    "add: levels": lambda w: w.kernel.add(w.ring, w.cipher(1), w.cipher(2), w.task()),
    "add: none": lambda w: w.kernel.add(w.ring, w.cipher(1), None, w.task()),
    "add_plain: level": lambda w: w.kernel.add_plain(w.ring, w.cipher(1), w.plain(2), w.task()),
    "mul_plain: level": lambda w: w.kernel.mul_plain(w.ring, w.cipher(2), w.plain(1), w.task()),
    "mul: three polynomials": lambda w: w.kernel.mul(w.ring, w.cipher(1, 3), w.cipher(1), w.task()),
    "square: three polynomials": lambda w: w.kernel.square(w.ring, w.cipher(1, 3), w.task()),
    "relinearize: two polynomials": lambda w: w.kernel.relinearize(w.ring, w.cipher(1), w.key(element=0), w.task()),
    "relinearize: key too low": lambda w: w.kernel.relinearize(w.ring, w.cipher(2, 3), w.key(1, 0), w.task()),
    "relinearize: a rotation's key": lambda w: w.kernel.relinearize(w.ring, w.cipher(1, 3), w.key(), w.task()),
    "apply_galois: another element's key": lambda w: w.kernel.apply_galois(w.ring, w.cipher(1), 5, w.key(), w.task()),
    "rescale: level 0": lambda w: w.kernel.rescale(w.ring, w.cipher(0), w.task()),
    "mod_switch: level 0": lambda w: w.kernel.mod_switch(w.ring, w.cipher(0), w.task()),
    "apply_galois: key too low": lambda w: w.kernel.apply_galois(w.ring, w.cipher(2), 3, w.key(1), w.task()),
    "apply_galois: even element": lambda w: w.kernel.apply_galois(w.ring, w.cipher(1), 4, w.key(), w.task()),
    "apply_galois: element 2n + 1": lambda w: w.kernel.apply_galois(w.ring, w.cipher(1), 2 * N + 1, w.key(), w.task()),
    "apply_galois: three polynomials": lambda w: w.kernel.apply_galois(w.ring, w.cipher(1, 3), 3, w.key(), w.task()),
    "apply_galois: no key": lambda w: w.kernel.apply_galois(w.ring, w.cipher(1), 3, None, w.task()),
    "no task": lambda w: w.kernel.square(w.ring, w.cipher(1), None),
}
TRANSFORMS: dict[str, Callable[[World], Any]] = {
    "an input out of range": lambda w: w.transform(babies=[(0, 1), (2, 3)]),
    "an even baby": lambda w: w.transform(babies=[(0, 1), (1, 2)]),
    "a baby of 2n + 1": lambda w: w.transform(babies=[(0, 1), (1, 2 * N + 1)]),
    "an output out of range": lambda w: w.transform(groups=[(1, 3)]),
    "an even group": lambda w: w.transform(groups=[(0, 6)]),
    "a group of 2n + 1": lambda w: w.transform(groups=[(0, 2 * N + 1)]),
    "a group twice": lambda w: w.transform(groups=[(0, 1), (0, 1)], cells=[(0, 0, 0), (1, 0, 0)]),
    "an output without a group": lambda w: w.transform(outputs=2),
    "a group without a cell": lambda w: w.transform(groups=[(0, 1), (0, 3)]),
    "cells out of order": lambda w: w.transform(groups=[(0, 1), (0, 3)], cells=[(1, 0, 0), (0, 0, 0)]),
    "a cell of no group": lambda w: w.transform(cells=[(0, 0, 0), (1, 0, 0)]),
    "a cell of no baby": lambda w: w.transform(cells=[(0, 2, 0)]),
    "a cell of no plaintext": lambda w: w.transform(cells=[(0, 0, 1)]),
    "a negative index": lambda w: w.transform(cells=[(0, -1, 0)]),
    "cells of two": lambda w: w.transform(cells=[(0, 0)]),
    "flat cells": lambda w: w.transform(cells=[0, 0, 0]),
    "cells in floating point": lambda w: w.transform(cells=[(0, 0.5, 0)], dtype=np.float64),
    "a level above": lambda w: w.transform(level=3, plains=[w.plain(2)]),
    "a plaintext of another level": lambda w: w.transform(plains=[w.plain(2)]),
    "a plaintext without special rows": lambda w: w.transform(plains=[w.plain(extended=False)]),
    "no plaintext": lambda w: w.transform(plains=[None]),
    "too few inputs": lambda w: w.run(inputs=[w.cipher()]),
    "an input of another level": lambda w: w.run(inputs=[w.cipher(), w.cipher(2)]),
    "an input of three polynomials": lambda w: w.run(inputs=[w.cipher(), w.cipher(1, 3)]),
    "no input": lambda w: w.run(inputs=[w.cipher(), None]),
}


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(call, id=f"{kind} {name}")
        for kind, table in {
            "upload": UPLOADS, "download": DOWNLOADS, "key": KEYS, "encode": ENCODINGS, "leaf": LEAVES, "transform": TRANSFORMS,
        }.items()
        for name, call in table.items()
    ],
)  # fmt: skip
def test_what_does_not_fit_raises(kernel: Any, call: Callable[[World], Any]) -> None:
    home = world(kernel)
    with pytest.raises((ValueError, TypeError)):
        call(home)
    home.run()  # and what fits still does


KEY_SETS: dict[str, Callable[[World], Any]] = {
    "missing": lambda w: {},
    "of another element only": lambda w: {5: w.key(element=5)},
    "too low": lambda w: {3: w.key(0)},
    "none": lambda w: {3: None},
}


@pytest.mark.parametrize("name", KEY_SETS)
def test_a_transform_without_its_keys_raises(kernel: Any, name: str) -> None:
    home = world(kernel)
    with pytest.raises(IndexError, match="key for Galois element 3"):
        home.run(keys=KEY_SETS[name](home))
    with pytest.raises((IndexError, ValueError)):
        kernel.rotate_hoisted(home.ring, home.cipher(), [3], KEY_SETS[name](home), home.task())


def test_keys_stored_under_another_element_raise(kernel: Any) -> None:
    """A key is laid out for its automorphism, so the wrong one would give noise and not an answer."""
    home = world(kernel)
    with pytest.raises(ValueError, match="element"):
        home.run(keys={3: home.key(element=5)})
    with pytest.raises(ValueError, match="element"):
        kernel.rotate_hoisted(home.ring, home.cipher(), [3], {3: home.key(element=5)}, home.task())
