"""A plan run under encryption on samples, its counters checked."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from he_runtime import Plan
from secateur.local import Local

__all__ = ["encrypted_outputs"]


def encrypted_outputs(plan: Plan, samples: npt.ArrayLike, backend: str = "tenseal") -> npt.NDArray[np.float64]:
    """Decrypted outputs (n, *shape) of normalized samples, as many at once as the plan's batch.

    What every run executed must be what was planned.
    """
    local, x, outputs = Local(plan, backend), np.asarray(samples, dtype=np.float64), []
    for start in range(0, len(x), plan.batch):
        some = x[start : start + plan.batch]
        answer = local.evaluate(local.encrypt_batch(some))
        assert local.executor.counters == plan.counts_on(backend)
        outputs.append(local.decrypt_batch(answer, len(some)))
    return np.concatenate(outputs)
