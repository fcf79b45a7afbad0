"""What a client does, written once for the blocking and the asyncio client: coroutines over a Port (`port`)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy.typing as npt

from he_runtime.client_spec import ClientSpec
from he_runtime.errors import Reason
from he_runtime.ring import CiphertextData
from he_runtime.wire import WIRE_VERSION, key_set_byte_size
from protos.native import CostEstimate, ModelSummary, ServerInfo

from . import calls
from .errors import ServerError
from .exchange import check_input
from .keystore import KeyStore, ServerIdentity
from .limits import Limits
from .port import Port, ask
from .prediction import Floats, Prediction
from .prepare import Prepared, checked_spec, make_ready
from .release import Release, decrypt_for_release, require_precision
from .retry import Budget
from .run import Answer, Batch, Request, checked_reply, make_request, open_reply
from .transport import Calls
from .trust import require_printable
from .upload import Progress

__all__ = ["IN_FLIGHT", "Core", "Wish", "greet"]

T = TypeVar("T")
IN_FLIGHT = 4
# What the server forgot or replaced since it was asked: worth preparing again, once.
_STALE_KEYS = frozenset({Reason.KEY_SET_UNKNOWN})
_STALE_SPEC = frozenset({Reason.MODEL_UNKNOWN, Reason.VERSION_UNKNOWN})


async def greet(to: Port, limits: Limits, budget: Budget) -> ServerInfo:
    """Ask the server who it is; ServerError (VERSION_UNKNOWN) for one of another wire version."""
    server = (await ask(to, calls.list_models(), budget)).server
    require_printable((server.build,), limits)
    if server.wire_version != WIRE_VERSION:
        raise ServerError(
            f"cannot talk to this server: got wire version {server.wire_version}, need {WIRE_VERSION}; try client and "
            "server of one release",
            Reason.VERSION_UNKNOWN,
        )
    return server


@dataclass(frozen=True)
class Wish:
    """Which model is called, with what patience, and who is told of the key upload."""

    model: str
    version: str
    budget: Budget
    progress: Progress | None = None


class Core:
    """One client's knowledge of one server."""

    def __init__(
        self, to: Port, identity: ServerIdentity, keystore: KeyStore, limits: Limits, server: ServerInfo
    ) -> None:
        self.port = to
        self.identity = identity
        self.keystore = keystore
        self.limits = limits
        self.server = server
        self._specs: dict[tuple[str, str], tuple[ClientSpec, str]] = {}  # with the digest of the server's bytes
        self._prepared: dict[tuple[str, str], Prepared] = {}

    def drop_secrets(self) -> None:
        self._prepared.clear()

    async def models(self, budget: Budget) -> list[ModelSummary]:
        models = (await ask(self.port, calls.list_models(), budget)).models
        require_printable((text for m in models for text in (m.name, m.default_version, *m.versions)), self.limits)
        return list(models)

    async def spec(self, model: str, version: str, budget: Budget) -> tuple[ClientSpec, str]:
        return checked_spec(await ask(self.port, calls.get_model(model, version), budget), model, version, self.limits)

    async def estimate(self, model: str, version: str, budget: Budget) -> CostEstimate:
        found = await ask(self.port, calls.estimate(model, version), budget)
        names = (found.model, found.version, found.table_name, found.confidence, *found.counts, *found.dense_counts)
        require_printable((*names, *(layer.name for layer in found.layers)), self.limits)
        return found

    async def prepare(self, wish: Wish) -> Prepared:
        name = (wish.model, wish.version)
        known = self._prepared.get(name)
        if known is not None:
            return known
        spec, digest = await self._fetched(wish)

        def work(transport: Calls) -> Prepared:
            entry = self.keystore.entry(self.identity, spec.params)
            return make_ready(transport, entry, spec, digest, self.server, wish.progress)

        ready = await self.port.blocking(work, wish.budget)
        self._prepared[name] = replace(ready, uploaded_bytes=0)
        return ready

    async def _fetched(self, wish: Wish) -> tuple[ClientSpec, str]:
        name = (wish.model, wish.version)
        if name not in self._specs:
            self._specs[name] = await self.spec(*name, wish.budget)
        return self._specs[name]

    # Predicting

    async def predict(
        self,
        wish: Wish,
        x: npt.ArrayLike,
        strict: bool,
        in_flight: int,
        items: Callable[[int, int], None] | None,
    ) -> Prediction:
        batch: Batch | None = None
        packed_by = ""

        async def attempt(spec: ClientSpec, digest: str) -> Prediction:
            nonlocal batch, packed_by
            if batch is None or packed_by != digest:  # answers of two versions are never mixed
                packed_by = digest
                batch = Batch(spec, *check_input(spec, x, strict))  # before keys are made: a wrong shape costs nothing
            ready = await self.prepare(wish)
            batch.uploaded_bytes = ready.uploaded_bytes
            await self._run(wish, ready, batch, in_flight, items or (lambda done, total: None))
            return batch.prediction(ready)

        try:
            return await self.fresh(wish, attempt)
        except ServerError as error:
            if batch is None:
                raise
            failed = batch.failed(error, key_set_byte_size(batch.spec.keys, batch.spec.params, seeded=True))
            if failed is error:
                raise
            raise failed from error

    async def fresh(self, wish: Wish, attempt: Callable[[ClientSpec, str], Awaitable[T]]) -> T:
        """The attempt; once more, prepared anew, when the server has forgotten or replaced what it was prepared with."""
        try:
            return await attempt(*await self._fetched(wish))
        except ServerError as error:
            if error.reason not in _STALE_KEYS | _STALE_SPEC or not await self._forget(wish, error.reason):
                raise
        return await attempt(*await self._fetched(wish))

    async def _forget(self, wish: Wish, reason: Reason) -> bool:
        """Drop what turned out to be stale; False when nothing was known, so that trying again would change nothing."""
        name = (wish.model, wish.version)
        spec, ready = self._specs.pop(name, None), self._prepared.pop(name, None)
        if ready is not None and reason in _STALE_KEYS:
            entry, keys, key_set_id = ready.entry, ready.spec.keys, ready.key_set_id
            await self.port.blocking(lambda _: entry.forget(keys, key_set_id), wish.budget)
        return spec is not None

    async def _run(
        self, wish: Wish, ready: Prepared, batch: Batch, in_flight: int, items: Callable[[int, int], None]
    ) -> None:
        """Have what is missing of a batch answered. After a failure nothing more is begun, and what is under way finishes."""
        failures: list[ServerError] = []

        async def work(k: int) -> Answer | ServerError:
            try:
                return await self._answer(wish, ready, batch.samples(k))
            except ServerError as error:
                return error

        def done(k: int, found: Answer | ServerError) -> bool:
            if isinstance(found, ServerError):
                failures.append(found)
            else:
                batch.answers[k] = found
                items(batch.items_done, batch.size)
            return not failures

        await self.port.each(batch.missing(), work, max(1, in_flight), done)
        if failures:
            raise failures[0]

    async def _answer(self, wish: Wish, ready: Prepared, samples: Floats) -> Answer:
        request = await self.request(ready, samples)
        sent = time.perf_counter()
        reply = await ask(self.port, calls.infer(request.call), wish.budget)
        took = time.perf_counter() - sent
        return await self.port.compute(partial(open_reply, ready, request, reply, took, self.limits))

    async def request(self, ready: Prepared, samples: Floats) -> Request:
        most = min(self.limits.max_message_bytes, self.server.max_message_bytes or self.limits.max_message_bytes)
        return await self.port.compute(partial(make_request, ready, samples, most))

    async def predict_for_release(
        self, wish: Wish, x: npt.ArrayLike, bits: int, releases: int, statistical_bits: int, in_flight: int
    ) -> Release:
        spec, _ = await self._fetched(wish)
        require_precision(spec, bits, releases, statistical_bits)
        batch = Batch(spec, *check_input(spec, x, strict=True))
        ready = await self.prepare(wish)
        require_precision(ready.spec, bits, releases, statistical_bits)
        replies: dict[int, list[CiphertextData]] = {}

        async def work(k: int) -> list[CiphertextData]:
            request = await self.request(ready, batch.samples(k))
            reply = await ask(self.port, calls.infer(request.call), wish.budget)
            return await self.port.compute(partial(checked_reply, ready.spec, reply, self.limits))

        def done(k: int, found: list[CiphertextData]) -> bool:
            replies[k] = found
            return True

        await self.port.each(batch.missing(), work, max(1, in_flight), done)
        ordered = [replies[k] for k in sorted(replies)]
        budget = {"releases": releases, "statistical_bits": statistical_bits}
        return await self.port.compute(partial(decrypt_for_release, ready, ordered, batch.size, bits, **budget))
