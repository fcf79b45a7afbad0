"""Wishes that no plan can have: refused at once, naming what was asked and what may be."""

from __future__ import annotations

from typing import Any

import pytest

from he_runtime import compile
from he_runtime.errors import ParameterError
from tests.he_runtime.networks import mlp

NAN, INF = float("nan"), float("inf")
MODEL = mlp().calibrated()
WRONG: list[tuple[dict[str, Any], str]] = [
    *(({"batch": n}, rf"cannot interleave {n} samples: need a power of two; try batch=1$") for n in (0, -4)),
    ({"batch": 3}, "cannot interleave 3 samples: need a power of two; try batch=2 or 4$"),
    ({"batch": 2.5}, "try batch=2 or 4$"),
    ({"batch": INF}, "try batch=1$"),
    ({"batch": True}, "cannot interleave True samples"),
    *(({"batch": x}, f"cannot interleave {x} samples") for x in ("4", None)),
    ({"degrees": ()}, "need several or one of 4096, 8192"),
    ({"degrees": 8192}, r"ring degrees \[8192\]: need several or one"),
    ({"degrees": (8192, 5000)}, r"ring degrees \[8192, 5000\]: need several or one of 4096, 8192"),
    ({"degrees": ("8192", [])}, r"ring degrees \['8192', \[\]\]: need"),
    *(({"max_error": x}, "need a finite number above 0") for x in ("0.1", True, 10**400)),
    ({"primes_per_level": "2"}, "2 primes per level: need 1 to 3"),
    *(({"max_error": x}, f"max_error={x}: need a finite number above 0") for x in (0, -1, NAN, INF)),
    *(({"margin_share": x}, f"margin_share={x}: need a finite number above 0") for x in (0.0, -2.0, NAN)),
    *(({name: 0}, f"{name}=0: need a finite number above 0") for name in ("max_bytes", "max_key_bytes")),
    *(({"primes_per_level": n}, f"{n} primes per level: need 1 to 3") for n in (0, 4)),
    ({"input_packings": ("plain", "folded")}, r"cannot pack an input as \['folded', 'plain'\]"),
    ({"disclosure": "everything"}, "disclosure 'everything'"),
    *(
        ({"disclosure": "shape", "max_error": 1.0, "magnitude": x}, f"magnitude={x}: need a finite")
        for x in (-1.0, INF)
    ),
]


@pytest.mark.parametrize(("wish", "message"), WRONG, ids=str)
def test_it_is_refused_by_name(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        compile(MODEL, **wish)


@pytest.mark.parametrize("margin", [0.0, -1.0, NAN])
def test_a_network_without_a_margin_asks_for_a_bound(margin: float) -> None:
    """Outputs that are all alike allow no error at all."""
    flat = MODEL.with_(metadata={**MODEL.metadata, "median_margin": margin})
    with pytest.raises(ParameterError, match=r"got a median margin of .*; try max_error="):
        compile(flat)
    assert compile(flat, max_error=1.0).error_bound <= 1.0
