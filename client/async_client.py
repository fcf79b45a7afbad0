"""AsyncClient: what Client does, for programs on asyncio. Only the waiting differs; the flows are the same code (core.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt

from he_runtime.client_spec import ClientSpec
from protos.native import CostEstimate, ModelSummary, ServerInfo

from . import job_core
from .aio_transport import AioTransport
from .channel import Endpoint, find_route
from .core import IN_FLIGHT, Core, Wish, greet
from .credentials import Token, TokenSource
from .jobs import AsyncJob
from .keyring import StoredKeys, delete_keys, list_keys
from .keystore import KeyStore, ServerIdentity
from .limits import Limits
from .prediction import Prediction
from .prepare import Prepared
from .release import RELEASES, STATISTICAL_BITS, Release
from .retry import RETRIES
from .upload import Progress

__all__ = ["AsyncClient"]


class AsyncClient:
    """A connection to one server for one event loop; make it with `await AsyncClient.connect(...)`.

    Arguments, results, retries and errors of every method are those of Client. Calls may run at the same time. Keys are
    made, inputs encrypted and answers decrypted in threads, so the loop is never blocked; `progress` of a key upload may
    be called from such a thread. Cancelling the task of a call cancels what is under way at the server.
    """

    def __init__(
        self,
        transport: AioTransport,
        identity: ServerIdentity,
        keystore: KeyStore,
        limits: Limits,
        server: ServerInfo,
    ) -> None:
        self.keystore = keystore
        self.limits = limits
        self.server = server
        self._transport = transport
        self._core = Core(transport, identity, keystore, limits, server)

    @classmethod
    async def connect(
        cls,
        address: str,
        *,
        certificate: str | Path | None = None,
        client_certificate: tuple[str | Path, str | Path] | None = None,
        token: Token | None = None,
        home: str | Path | None = None,
        limits: Limits | None = None,
        timeout: float = 300.0,
        retries: int = RETRIES,
        allow_insecure_channel: bool = False,
    ) -> AsyncClient:
        """As Client.connect."""
        limits, endpoint = limits or Limits(), Endpoint.parse(address)
        how: dict[str, Any] = {
            "allow_insecure": allow_insecure_channel,
            "timeout_seconds": min(timeout, 30.0),
            "client_certificate": client_certificate,
            "with_token": token is not None,
        }
        route = await asyncio.to_thread(find_route, endpoint, certificate, limits, **how)
        source = TokenSource(token) if token is not None else None
        transport = AioTransport(
            route.open_aio(), str(endpoint), timeout_seconds=timeout, token=source, retries=retries
        )
        try:
            server = await greet(transport, limits, transport.budget)
        except BaseException:
            await transport.close()
            raise
        return cls(transport, route.identity, KeyStore(home), limits, server)

    async def close(self) -> None:
        """Close the connection and drop the secrets from memory; they stay on disk."""
        self._core.drop_secrets()
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self._core.identity.address!r})"

    async def models(self) -> list[ModelSummary]:
        """The models that the server offers."""
        return await self._core.models(self._transport.budget)

    async def spec(self, model: str, version: str | None = None) -> ClientSpec:
        """The server's client spec of a model, after every check of `trust`."""
        return (await self._core.spec(model, version or "", self._transport.budget))[0]

    async def estimate(self, model: str, version: str | None = None) -> CostEstimate:
        """What the server says that one prediction costs."""
        return await self._core.estimate(model, version or "", self._transport.budget)

    async def prepare(
        self,
        model: str,
        version: str | None = None,
        progress: Progress | None = None,
        *,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> Prepared:
        """As Client.prepare."""
        return await self._core.prepare(self._wish(model, version, progress, timeout, retries))

    async def predict(
        self,
        model: str,
        x: npt.ArrayLike,
        *,
        version: str | None = None,
        strict: bool = False,
        progress: Progress | None = None,
        items: Callable[[int, int], None] | None = None,
        in_flight: int = IN_FLIGHT,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> Prediction:
        """As Client.predict."""
        wish = self._wish(model, version, progress, timeout, retries)
        return await self._core.predict(wish, x, strict, in_flight, items)

    async def predict_for_release(
        self,
        model: str,
        x: npt.ArrayLike,
        bits: int,
        *,
        version: str | None = None,
        releases: int = RELEASES,
        statistical_bits: int = STATISTICAL_BITS,
        in_flight: int = IN_FLIGHT,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> Release:
        """As Client.predict_for_release."""
        wish = self._wish(model, version, None, timeout, retries)
        return await self._core.predict_for_release(wish, x, bits, releases, statistical_bits, in_flight)

    async def submit(
        self,
        model: str,
        x: npt.ArrayLike,
        *,
        version: str | None = None,
        strict: bool = False,
        progress: Progress | None = None,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> AsyncJob:
        """As Client.submit."""
        wish = self._wish(model, version, progress, timeout, retries)
        return self._job(await job_core.submit(self._core, wish, x, strict))

    def job(self, job: str) -> AsyncJob:
        """As Client.job; reads a small file."""
        return self._job(job_core.known_job(self._core, job))

    def jobs(self) -> list[AsyncJob]:
        """As Client.jobs; reads small files."""
        return [self._job(known) for known in job_core.known_jobs(self._core)]

    async def keys(self) -> list[StoredKeys]:
        """As Client.keys."""
        return await list_keys(self._transport, self.keystore, self._core.identity, self._transport.budget)

    async def delete_keys(self, *names: str) -> list[StoredKeys]:
        """As Client.delete_keys."""
        self._core.drop_secrets()
        where = self._transport, self.keystore, self._core.identity, self._transport.budget
        return await delete_keys(*where, names)

    def _wish(
        self, model: str, version: str | None, progress: Progress | None, timeout: float | None, retries: int | None
    ) -> Wish:
        return Wish(model, version or "", self._transport.budget.for_call(timeout, retries), progress)

    def _job(self, known: job_core.KnownJob) -> AsyncJob:
        return AsyncJob(self._core, known, self._transport.budget)
