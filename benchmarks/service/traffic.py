"""Requests by the thousand: clients that ask at a given rate or one after the other, and what became of every request."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from protos.gen.secateur.v1 import inference_pb2, inference_pb2_grpc
from protos.status import Failure, from_rpc_error

__all__ = ["Answer", "Clients", "Target", "percentile", "tally"]

_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
_MAX_ATTEMPTS = 1000


@dataclass(frozen=True)
class Target:
    """What is asked: `request(tag)` with the tag as its request_id, and whether a reply is the right one to it."""

    address: str
    request: Callable[[str], inference_pb2.InferRequest]
    is_right: Callable[[str, bytes], bool]


@dataclass
class Answer:
    """What became of one request. `refusals` are the seconds that each refusal took; `lost` the attempts that failed
    with UNAVAILABLE and the seconds from the first of them to the reply."""

    tag: str
    reason: str = ""  # of its last failure; empty for a right reply
    began: float = 0.0
    ended: float = 0.0
    refusals: list[float] = field(default_factory=list)
    lost: int = 0
    lost_seconds: float = 0.0


class Clients:
    """`count` clients, each on a connection of its own; use as an async context manager."""

    def __init__(self, target: Target, count: int, timeout_seconds: float = 30.0) -> None:
        self._target = target
        self._count = count
        self._timeout = timeout_seconds
        self._channels: list[grpc.aio.Channel] = []
        self._stubs: list[Any] = []
        self._numbers = itertools.count()

    async def __aenter__(self) -> Clients:
        self._channels = [grpc.aio.insecure_channel(self._target.address, _OPTIONS) for _ in range(self._count)]
        self._stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in self._channels]
        await asyncio.gather(*(channel.channel_ready() for channel in self._channels))
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(channel.close(None) for channel in self._channels))

    async def at_rate(self, per_second: float, seconds: float, generator: random.Random) -> list[Answer]:
        """Requests at random times of this rate, whether others have been answered or not; none is tried again."""
        tasks, at, started = [], 0.0, time.monotonic()
        for client in itertools.cycle(range(self._count)):
            at += generator.expovariate(per_second)
            if at > seconds:
                break
            await asyncio.sleep(started + at - time.monotonic())
            tasks.append(asyncio.create_task(self.ask(client, patient=False)))
        return list(await asyncio.gather(*tasks))

    async def one_after_the_other(self, seconds: float, until: Callable[[], bool] = lambda: False) -> list[Answer]:
        """Every client asks again as soon as it has its answer, and comes back when told to; until the time is over."""
        end = time.monotonic() + seconds

        async def keep_asking(client: int) -> list[Answer]:
            answers = []
            while time.monotonic() < end and not until():
                answers.append(await self.ask(client, patient=True))
            return answers

        return list(itertools.chain(*await asyncio.gather(*(keep_asking(c) for c in range(self._count)))))

    async def ask(self, client: int, *, patient: bool) -> Answer:
        """One request; a patient client tries again under the same request_id where it may help, as it is told."""
        answer = Answer(f"{client}-{next(self._numbers)}", began=time.monotonic())
        request = self._target.request(answer.tag)
        first_lost = 0.0
        for _ in range(_MAX_ATTEMPTS):
            started = time.monotonic()
            failure = await self._attempt(client, request, answer)
            answer.ended = time.monotonic()
            if failure is None:
                answer.lost_seconds = answer.ended - first_lost if first_lost else 0.0
                return answer
            if failure.reason in ("SERVER_BUSY", "LIMIT_EXCEEDED"):
                answer.refusals.append(answer.ended - started)
            elif failure.code is grpc.StatusCode.UNAVAILABLE:
                answer.lost += 1
                first_lost = first_lost or started
            if not patient or failure.retry_after_seconds is None:
                return answer
            await asyncio.sleep(failure.retry_after_seconds)
        return answer

    async def _attempt(self, client: int, request: inference_pb2.InferRequest, answer: Answer) -> Failure | None:
        try:
            reply = await self._stubs[client].Infer(request, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            answer.reason = failure.reason
            return failure
        answer.reason = "" if self._target.is_right(answer.tag, reply.ciphertexts) else "WRONG_REPLY"
        return None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def tally(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """Figures of a phase: goodput (right replies per second), failures by reason, milliseconds of replies and refusals."""
    good = [a for a in answers if not a.reason]
    refusals = [s * 1e3 for a in answers for s in a.refusals]
    taken = [(a.ended - a.began) * 1e3 for a in good]
    return {
        "requests": len(answers),
        "goodput_per_s": round(len(good) / seconds, 2),
        "failures": dict(Counter(a.reason for a in answers if a.reason)),
        "reply_ms": _spread(taken),
        "refusals": len(refusals),
        "refusal_ms": _spread(refusals),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    shares: Iterator[tuple[str, float]] = iter((("p50", 0.5), ("p99", 0.99), ("max", 1.0)))
    return {name: round(percentile(values, share), 2) for name, share in shares} if values else {}
