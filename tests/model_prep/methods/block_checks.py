"""What the tests of block and gather-scatter pruning share: encrypted runs, and products in closed form."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from he_runtime import Plan, compile, run_clear
from he_runtime.cost import load_default
from he_runtime.model import CompressedModel
from he_runtime.plan.counts import layer_counts, leaf_totals
from tests.model_prep.methods.encrypted import encrypted_outputs

__all__ = ["assert_encrypted_equals_clear", "assert_products", "one_feature", "products"]

Bools = npt.NDArray[np.bool_]


def one_feature(model: CompressedModel, degree: int = 8192) -> Plan:
    """The plan with as many samples as slots: a ciphertext per feature."""
    return compile(model, degrees=(degree,), batch=degree // 2, table=load_default("tenseal"))


def products(matrices: list[Bools]) -> list[int]:
    """Non-zeros of each layer, as a matrix of features by features, whose input depends on the image.

    A feature that no weight reaches is a constant: what reads it is part of a bias.
    """
    live, counts = np.ones(matrices[0].shape[1], dtype=np.bool_), []
    for matrix in matrices:
        counts.append(int((matrix & live).sum()))
        live = (matrix & live).any(axis=1)
    return counts


def assert_products(plan: Plan, layer: str, expected: int, weight: npt.NDArray[np.generic]) -> None:
    """The layer makes so many products in the plan, and no rotation.

    A constant below a step of its encoding (2^-16) is rounded to one step, and that product is free: an addition.
    """
    totals = leaf_totals(layer_counts(plan)[layer])
    tiny = int(((weight != 0) & (np.abs(weight.astype(np.float64)) < 2.0**-15)).sum())
    if tiny:
        assert expected - tiny <= totals["mul_plain"] <= expected
    else:
        assert totals["mul_plain"] == expected
    assert "rotate" not in totals


def assert_encrypted_equals_clear(plan: Plan, images: npt.NDArray[np.float64]) -> None:
    """All images (n, *shape), as many at once as the plan takes: the same argmax in 99 of 100, within the bound.

    Executed counters are the planned ones.
    """
    logits, clear = encrypted_outputs(plan, images), run_clear(plan, images)
    assert np.abs(logits - clear).max() <= 1.5 * plan.error_bound  # six sigmas, of a sigma measured to a third
    assert (logits.argmax(axis=1) == clear.argmax(axis=1)).sum() >= 0.99 * len(images)
