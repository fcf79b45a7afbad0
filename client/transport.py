"""The blocking gRPC channel of a client: typed calls with deadlines, retries and typed errors instead of RpcError."""

from __future__ import annotations

import contextvars
import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import grpc

from he_runtime.errors import Reason
from protos.gen.secateur.v1 import keys_pb2
from protos.native import (
    CostEstimate,
    InferenceCall,
    InferenceReply,
    KeySetInfo,
    MissingPieces,
    ModelListing,
    ServedModel,
    UploadInfo,
    UploadOffer,
)

from . import calls
from .calls import Call, Stubs
from .credentials import TokenSource
from .errors import ServerError
from .port import Metadata, ask, drive
from .retry import RETRIES, Budget

__all__ = ["Calls", "Transport", "given_up"]

T = TypeVar("T")
P = TypeVar("P")


class Calls(ABC):
    """Typed blocking calls. What moves an upload on is not retried here: `upload` asks again where the server stands."""

    @abstractmethod
    def ask(self, call: Call[T]) -> T:
        """The call's answer; ServerError (ServerUnreachable) where there is none."""

    def list_models(self) -> ModelListing:
        return self.ask(calls.list_models())

    def get_model(self, model: str, version: str) -> ServedModel:
        return self.ask(calls.get_model(model, version))

    def estimate(self, model: str, version: str) -> CostEstimate:
        return self.ask(calls.estimate(model, version))

    def create_upload(self, offer: UploadOffer) -> UploadInfo | KeySetInfo | MissingPieces:
        return self.ask(calls.create_upload(offer))

    def get_upload(self, upload_id: str) -> UploadInfo:
        return self.ask(calls.get_upload(upload_id))

    def upload_chunks(self, requests: Callable[[], Iterator[keys_pb2.UploadChunkRequest]]) -> int:
        """Send the chunks of one upload that `requests` makes; the offset that the server committed."""
        return self.ask(calls.upload_chunks(requests))

    def commit_upload(self, upload_id: str) -> KeySetInfo:
        return self.ask(calls.commit_upload(upload_id))

    def infer(self, call: InferenceCall) -> InferenceReply:
        return self.ask(calls.infer(call))


class Transport(Calls):
    """One server over one channel. It is also the blocking client's Port, whose coroutines never suspend."""

    def __init__(
        self,
        channel: grpc.Channel,
        address: str,
        *,
        timeout_seconds: float,
        token: TokenSource | None = None,
        retries: int = RETRIES,
    ) -> None:
        self.address = address
        self.budget = Budget(timeout_seconds, retries)
        self._channel = channel
        self._token = token
        self._stubs = Stubs(channel)
        self._computing = threading.Lock()
        self._under_way = _UnderWay()

    def close(self) -> None:
        self._channel.close()

    def ask(self, call: Call[T]) -> T:
        return drive(ask(self, call, self.budget))

    async def once(self, call: Call[Any], seconds: float, metadata: Metadata) -> Any:
        message = call.request() if callable(call.request) else call.request
        with self._under_way.of(call.method(self._stubs).future(message, timeout=seconds, metadata=metadata)) as future:
            try:
                return future.result()
            except grpc.FutureCancelledError:
                raise given_up() from None

    async def stream(self, call: Call[Any], seconds: float, metadata: Metadata) -> AsyncGenerator[Any, None]:
        replies = call.method(self._stubs)(call.request, timeout=seconds, metadata=metadata)
        try:
            for reply in replies:
                yield reply
        finally:
            replies.cancel()  # of no effect on one that has ended

    async def token(self, refused: str | None = None) -> str | None:
        if self._token is None:
            return None
        return self._token.current() if refused is None else self._token.after_refusal(refused)

    async def sleep(self, seconds: float) -> None:
        if self._under_way.stopped.wait(seconds):
            raise given_up()

    async def compute(self, work: Callable[[], T]) -> T:
        with self._computing:
            return work()

    async def blocking(self, work: Callable[[Any], T], budget: Budget) -> T:
        bounded = copy.copy(self)
        bounded.budget = budget
        return work(bounded)

    async def each(
        self, parts: Sequence[P], work: Callable[[P], Awaitable[T]], most: int, done: Callable[[P, T], bool]
    ) -> None:
        if len(parts) == 1 or most == 1:  # no thread for what happens in turn
            for part in parts:
                if not done(part, await work(part)):
                    return
            return
        waiting, running, go_on = list(reversed(parts)), dict[Future[T], P](), True
        pool = ThreadPoolExecutor(min(most, len(parts)), "secateur-client")
        try:
            while running or (go_on and waiting):
                while go_on and waiting and len(running) < most:
                    part = waiting.pop()
                    context = contextvars.copy_context()  # the trace that this call is in
                    running[pool.submit(context.run, _drive_on, work, part)] = part
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    go_on = done(running.pop(future), future.result()) and go_on
        except BaseException:
            self._under_way.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._under_way = _UnderWay()  # what was stopped stays so; the next call begins anew


def _drive_on(work: Callable[[P], Awaitable[T]], part: P) -> T:
    return drive(work(part))


class _UnderWay:
    """The calls of several threads, so that one of them can cancel all at the server."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._futures: set[Any] = set()

    def of(self, future: Any) -> _Registered:
        with self._lock:
            self._futures.add(future)
        if self.stopped.is_set():
            future.cancel()
        return _Registered(self, future)

    def drop(self, future: Any) -> None:
        with self._lock:
            self._futures.discard(future)

    def stop(self) -> None:
        self.stopped.set()
        with self._lock:
            futures = list(self._futures)
        for future in futures:
            future.cancel()


class _Registered:
    def __init__(self, all_of_them: _UnderWay, future: Any) -> None:
        self._all = all_of_them
        self._future = future

    def __enter__(self) -> Any:
        return self._future

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._all.drop(self._future)
        if kind is not None:  # Ctrl-C: the server shall stop, too
            self._future.cancel()


def given_up() -> ServerError:
    """For work of a call that its caller has cancelled."""
    return ServerError("cannot finish: the caller has given up", Reason.CANCELLED, code="CANCELLED")
