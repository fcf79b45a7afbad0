"""Measure a backend's leaves on real ciphertexts of exactly the parameters that a plan uses.

Imported by name only (it makes keys): see `he_runtime.cost`. Every leaf is called as an executor calls it, so that the
cost of dispatch is inside, over pools of operands and with caches full of other things: a plan reads each plaintext and
each key once.
"""

from __future__ import annotations

import datetime
import importlib
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..backends import open_backend
from ..errors import ParameterError
from ..params import CkksParams
from ..plan import Kind, Op, Plaintext, Plan, Port, ValueType, verify
from ..plan.counts import FUSED
from ..ring import RELINEARIZATION, CiphertextData, EvaluationKeys, KeyRecord, KeyRequest, KeySetSpec
from .chains import has_long_primes, narrow_chain, wide_chain
from .entry import CostEntry
from .environment import here, machine_name
from .formulas import BORDER, WIDE
from .fused_bench import FusedBench
from .measure import Clock, timed
from .rounds import in_rounds
from .table import CostTable, Key

__all__ = ["calibrate", "clock_of", "machine_name", "measured_table", "single_operations", "threads_of"]

Progress = Callable[[str, float], None]
_SCALE = 2.0**7  # products stay below the smallest admissible prime
_PLAINTEXTS = 64
_CIPHERTEXTS = 16
_POOL_BYTES = 160 << 20
_KEY_POOL_BYTES = 64 << 20  # several times a usual last-level cache
_MAX_KEYS = 16
_KEY_SHARE = 0.25  # of the time budget
# As many in a row as plans have them: the first call after something else finds cold caches and takes up to twice as long.
_CALLS = {"mul_plain": 16, "add": 16, "add_plain": 8, "mod_switch": 4, "upload": 4, "download": 1, "rotate": 4}
_FEW_CALLS = 2


def calibrate(
    backend: str,
    params: CkksParams,
    levels: Collection[int] | None = None,
    seconds: float = 10.0,
    progress: Progress | None = None,
    *,
    only: Collection[tuple[str, int]] | None = None,
    clock: Clock | None = None,
) -> CostTable:
    """Medians over interleaved rounds of single operations, at `levels` (default: all of `params`).

    On the native kernel these are of primes below 2^50; the lowest and the highest level are measured with longer primes too.
    `only` restricts to the (leaf, level) pairs given, for instance a plan's `counts_on(backend)`, and to long primes only where
    `params` have some; "upload" and "download" are
    always measured, conjugation never: lookups take it for the rotation that it is. `progress` receives a phase and the
    fraction of `seconds` used. Key generation is inside the budget; a first round is always completed, however long it takes.
    `clock` is by default this thread's processor time, which equals the wall clock on a free core and ignores the other
    processes of a busy one; for a backend that computes on several threads it is the wall clock. Raises BackendUnavailable, or ParameterError for
    levels that the parameters do not have.
    """
    deadline = time.perf_counter() + seconds
    wanted = sorted(set(range(params.max_level + 1) if levels is None else levels))
    if not wanted or not 0 <= wanted[0] <= wanted[-1] <= params.max_level or seconds <= 0:
        raise ParameterError(
            f"cannot calibrate levels {wanted} for {seconds} s: need levels of 0 to {params.max_level} and a positive time"
        )
    report = progress or (lambda phase, share: None)
    report("keys", 0.0)
    bench = _Bench(backend, narrow_chain(backend, params), wanted, seconds)
    tasks = {key: task for key, task in bench.tasks() if only is None or key[0] in BORDER or (key[0], key[2]) in only}
    if only is None or has_long_primes(backend, params):
        leaves = None if only is None else {leaf for leaf, _ in only}
        tasks |= {
            key: task
            for key, task in _long(backend, params, seconds)
            if leaves is None or key[0].removeprefix(WIDE) in (*BORDER, *leaves)
        }
    clock = clock or clock_of(backend)
    samples = in_rounds(
        tasks, bench.probe, deadline, clock, lambda left: report("measure", min(1.0, 1 - left / seconds))
    )
    return measured_table(backend, samples)


def single_operations(backend: str, params: CkksParams, seconds: float = 10.0) -> dict[Key, Callable[[], float]]:
    """Every operation at every level as a routine that says how many calls it made, to be timed beside something else.

    A stage of a fused transform counts as as many calls as would fill the whole transform's time. Key generation takes at
    most a quarter of `seconds`.
    """
    found = dict(_Bench(backend, narrow_chain(backend, params), list(range(params.max_level + 1)), seconds).tasks())
    return found | dict(_long(backend, params, seconds)) if has_long_primes(backend, params) else found


def _long(backend: str, params: CkksParams, seconds: float) -> Iterator[tuple[Key, Callable[[], float]]]:
    """Every operation on long primes, at the lowest and the highest level of their chain; on SEAL's back ends nothing."""
    chain = wide_chain(backend, params)
    if chain is not None:
        for (leaf, degree, level), task in _Bench(backend, chain, sorted({0, chain.max_level}), seconds).tasks():
            yield (WIDE + leaf, degree, level), task


def measured_table(backend: str, samples: Mapping[Key, Sequence[float]]) -> CostTable:
    """The table of this machine, today, from seconds per call."""
    return CostTable(
        backend=backend,
        threads=threads_of(backend),
        machine=machine_name(),
        libraries=here((backend, "numpy", "python")).libraries,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        kind="measured",
        entries={key: _entry(values) for key, values in samples.items()},
    )


def threads_of(backend: str) -> int:
    """Threads that one run of a backend computes on."""
    return int(importlib.import_module("he_runtime.kernel._kernel").threads()) if backend in FUSED else 1


def clock_of(backend: str) -> Clock:
    """Processor time of this thread, which is the wall clock on a free core; that itself for several threads."""
    return time.thread_time if threads_of(backend) == 1 else time.perf_counter


def _entry(values: Sequence[float]) -> CostEntry:
    median = statistics.median(values)
    low, high = np.percentile(values, [25, 75])
    return CostEntry(median, float(high - low) / (2 * median))


class _Bench:
    """An evaluator of a synthetic plan with pools of operands at every wanted level."""

    def __init__(self, backend: str, params: CkksParams, levels: list[int], seconds: float) -> None:
        from ..backends.tenseal_secret import SecretKey

        self._params, self._levels = params, levels
        secret = SecretKey.generate(params)
        records, steps = _make_keys(secret, params, levels[-1], seconds * _KEY_SHARE)
        limbs = levels[-1] + 1
        self._pool = max(8, min(_PLAINTEXTS, _POOL_BYTES // (limbs * params.degree * 8)))
        self._steps = steps
        self._fused = FusedBench(steps, self._pool, self._pool) if backend in FUSED else None
        plan = _synthetic_plan(params, levels, self._pool, steps, self._fused)
        opened = open_backend(backend, plan)
        self._ev: Any = opened.evaluator_for(opened.load_keys(EvaluationKeys(params.digest, records)))
        slots = np.linspace(-1.0, 1.0, params.slots)
        self._data: dict[int, CiphertextData] = {level: secret.encrypt(slots, level, _SCALE) for level in levels}
        count = max(2, min(_CIPHERTEXTS, _POOL_BYTES // (2 * limbs * params.degree * 8)))
        self._cts = {level: [self._ev.upload(self._data[level]) for _ in range(count)] for level in levels}
        self._turn = 0

    def probe(self) -> None:
        """A fixed few milliseconds: key switches at the lowest measured level."""
        level = self._levels[0]
        for _ in range(max(1, 32768 // self._params.degree // (level + 1))):
            self._ev.rotate(self._cts[level][0], self._steps[0])

    def tasks(self) -> Iterator[tuple[Key, Callable[[], float]]]:
        """(leaf, N, level) with a routine that calls the leaf a few times and says how often."""
        for level in self._levels:
            for leaf, call in self._calls(level):
                yield (leaf, self._params.degree, level), partial(_repeat, call, _CALLS.get(leaf, _FEW_CALLS))
            if self._fused is not None:
                for leaf, share in self._fused.calls(level, self._ev, self._cts[level]):
                    yield (leaf, self._params.degree, level), share

    def _calls(self, level: int) -> Iterator[tuple[str, Callable[[], object]]]:
        ev, cts = self._ev, self._cts[level]
        first = self._levels.index(level) * (self._pool + 1)
        square = ev.square(cts[0])

        def ct() -> Any:
            self._turn += 1
            return cts[self._turn % len(cts)]

        def plain() -> int:
            return first + self._turn % self._pool

        def step() -> int:
            return self._steps[self._turn % len(self._steps)]

        yield "add", lambda: ev.add(cts[0], cts[1])
        yield "add_plain", lambda: ev.add_plain(ct(), plain())
        yield "mul_plain", lambda: ev.mul_plain(ct(), plain())
        yield "mul", lambda: ev.mul(ct(), cts[0])
        yield "square", lambda: ev.square(ct())
        yield "relinearize", lambda: ev.relinearize(square)
        yield "rotate", lambda: ev.rotate(ct(), step())
        if level:
            yield "rescale", lambda: ev.rescale(ct())
            yield "mod_switch", lambda: ev.mod_switch(ct())
        yield "upload", lambda: ev.upload(self._data[level])
        yield "download", lambda: ev.download(cts[0])


def _repeat(call: Callable[[], object], times: int) -> int:
    for _ in range(times):
        call()
    return times


def _make_keys(secret: Any, params: CkksParams, level: int, seconds: float) -> tuple[dict[int, KeyRecord], list[int]]:
    """A relinearization key and as many rotation keys as exceed a cache, or fit the time; with their steps."""

    def make(element: int) -> KeyRecord:
        (record,) = secret.make_keys(KeySetSpec((KeyRequest(element, level),)))
        return record  # type: ignore[no-any-return]

    records = {RELINEARIZATION: make(RELINEARIZATION)}
    size = KeyRequest(0, level).byte_size(params)
    steps: list[int] = []
    spent = 0.0
    while not steps or (len(steps) < min(_MAX_KEYS, -(-_KEY_POOL_BYTES // size)) and spent < seconds):
        step = 1 + 37 * len(steps)
        element = params.galois_element(step)
        spent += timed(lambda: records.__setitem__(element, make(element)))  # noqa: B023 - runs at once
        steps.append(step)
    return records, steps


def _synthetic_plan(
    params: CkksParams, levels: list[int], pool: int, steps: list[int], fused: FusedBench | None = None
) -> Plan:
    """A plan that needs exactly these keys and holds `pool` vectors and a constant at each level; it is never walked."""
    top = levels[-1]
    pair, triple = ValueType(top, _SCALE), ValueType(top, _SCALE * _SCALE, 3)
    ops = [Op(Kind.ROTATE, (0,), (3 + k,), "bench", step=step) for k, step in enumerate(steps)]
    ops += [Op(Kind.SQUARE, (0,), (1,), "bench"), Op(Kind.RELINEARIZE, (1,), (2,), "bench")]
    values = [pair, triple, ValueType(top, _SCALE * _SCALE), *([pair] * len(steps))]
    if fused is not None:
        _add_fused(fused, levels, pool, ops, values)
    # A constant is cheaper to encode than a vector, and as costly to multiply by where it is encoded as a polynomial.
    vectors = [np.array([k + 1.0] if fused is None else [k + 1.0, -k - 1.0]) for k in range(pool)]
    slot_map = np.arange(params.slots, dtype=np.int32)[None]
    plan = Plan(
        model_name="bench",
        model_digest="",
        params=params,
        ops=tuple(ops),
        values=tuple(values),
        vectors=(*vectors, np.array([3.0])),
        plaintexts=tuple(Plaintext(k, level, _SCALE) for level in levels for k in range(pool + 1)),
        inputs=(Port("x", (params.slots,), (0,), slot_map),),
        outputs=(Port("y", (params.slots,), (2,), slot_map),),
    )
    return verify(plan)


def _add_fused(fused: FusedBench, levels: list[int], pool: int, ops: list[Op], values: list[ValueType]) -> None:
    """The transforms at every level, each on a value that was switched down to it."""
    value, level = 0, levels[-1]
    for index in reversed(range(len(levels))):
        while level > levels[index]:
            level -= 1
            values.append(ValueType(level, _SCALE))
            ops.append(Op(Kind.MOD_SWITCH, (value,), (len(values) - 1,), "bench"))
            value = len(values) - 1
        ops += fused.ops(level, value, index * (pool + 1), values, _SCALE * _SCALE)
