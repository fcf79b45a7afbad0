"""Prices of the engine's jobs: the runtime's estimate of the model, corrected by what was measured here."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial

from he_runtime.errors import SecateurError

from ..config import EngineConfig
from ..observe.logs import event
from .frames import JobKind, Outcome
from .prices import Price, Prices
from .runtime import Cost, ModelDescription, Runtime

__all__ = ["Pricing"]

_KEY_BYTES_PER_MS = 400e3  # parsing and checking uploaded keys, before the first measurement


class Pricing:
    """Prices by job kind and plan, on this server's back end; one server has one machine's workers.

    Without a runtime every job has the same price, until it is measured.
    """

    def __init__(self, engine: EngineConfig, runtime: Runtime | None) -> None:
        self._engine = engine
        self._runtime = runtime
        self._prices = Prices(time.monotonic)

    async def learn(self, kind: JobKind, model: ModelDescription) -> None:
        """Estimate what was not estimated yet: that reads the plan, so it is done in a thread."""
        key = (kind, model.plan_digest)
        if self._prices.knows(key):
            return
        predicted = model.max_key_bytes / _KEY_BYTES_PER_MS
        if kind == "infer":
            cost = await self.cost(model)
            predicted = cost.predicted_ms if cost is not None else 0.0
        if not self._prices.knows(key):  # while this one waited
            self._prices.learn(key, predicted or None)

    async def cost(self, model: ModelDescription) -> Cost | None:
        """The estimate itself, with its layers; None where there is none."""
        if self._runtime is None:
            return None
        estimate = partial(self._runtime.estimate, model, self._engine.backend, self._engine.cost_table)
        try:
            return await asyncio.to_thread(estimate)
        except SecateurError as error:  # a model without a price is served all the same
            event("no estimate", level=logging.WARNING, model=model.name, version=model.version, cause=error.message)
            return None

    def of(self, kind: JobKind, model: ModelDescription) -> tuple[Price, float]:
        """The price, and the least milliseconds that such a job is known to take (0: unknown)."""
        key = (kind, model.plan_digest)
        return self._prices.price(key), self._prices.floor_ms(key)

    def measured(self, kind: JobKind, model: ModelDescription, outcome: Outcome) -> None:
        """A worker has finished a job. Loading keys or a model for an evaluation is not part of its price."""
        if not outcome.reason and kind in ("infer", "check_keys"):
            ms = outcome.evaluate_ms if kind == "infer" else outcome.load_ms
            self._prices.measured((kind, model.plan_digest), ms)
