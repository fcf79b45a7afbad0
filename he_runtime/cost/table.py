"""CostTable: seconds per leaf, measured on one machine, with a fit for what was not measured."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from ..errors import PlanError, Reason, WireError
from ..plan.counts import FUSED
from .entry import CostEntry
from .environment import Environment, here
from .fit import LeafFit, fit_leaf
from .formulas import SEAL_SHAPE, WIDE, Shape, leaf_work

__all__ = ["CostEntry", "CostTable", "Key", "load_default"]

FORMAT = "secateur.cost-table"
VERSION = 1
_MAX_BYTES = 4 << 20
_MAX_ENTRIES = 20_000
_FIELDS = {"format", "version", "backend", "threads", "machine", "libraries", "date", "kind", "entries", "digest"}

Key = tuple[str, int, int]  # (leaf, degree, level)
# One automorphism and one key switch each; one pass over a ciphertext.
_SAME_WORK = {"conjugate": "rotate", "rotate": "conjugate", "sub": "add", "negate": "add"}


@dataclass(frozen=True)
class CostTable:
    """What each leaf costs on one machine with one backend. `kind` is "shipped" for a table of another machine.

    `machine` is the processor's name, `libraries` maps a package to its version, `date` is ISO 8601.
    """

    backend: str
    threads: int
    machine: str
    libraries: Mapping[str, str]
    date: str
    kind: Literal["measured", "shipped"]
    entries: Mapping[Key, CostEntry] = field(repr=False)

    @property
    def name(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.backend}, {threads}, {self.machine}, {self.date}"

    def lookup(self, leaf: str, degree: int, level: int, shape: Shape = SEAL_SHAPE, wide: float = 0.0) -> CostEntry:
        """The measured entry; else by the formula fitted to all that was measured of this leaf (fit.py).

        `shape` is that of the plan's gadget; entries are measured on SEAL's. `wide` is the share of an operation's rows that
        are under primes above 2^50, which only the native kernel tells apart: each row takes as long as where all are.
        PlanError when the table has no entry of this leaf at all.
        """
        fit = self._fit(leaf)
        entry = fit.entry(degree, level) if shape == SEAL_SHAPE else fit.on_gadget(degree, level, shape)
        if wide == 0 or self.backend not in FUSED:
            return entry
        narrow, long = fit.entry(degree, level), self._fit(leaf, WIDE).entry(degree, level)
        ratio = 1.0 + wide * (max(1.0, long.seconds / narrow.seconds) - 1.0)
        return CostEntry(entry.seconds * ratio, max(entry.spread, long.spread))

    def _fit(self, leaf: str, prefix: str = "") -> LeafFit:
        fit = self.fits.get(prefix + leaf) or self.fits.get(prefix + _SAME_WORK.get(leaf, ""))
        if fit is None:
            where = " on primes above 2^50" if prefix else ""
            raise PlanError(
                f"cannot price {leaf!r}{where}: the cost table ({self.name}) has no such entry; try calibrating"
            )
        return fit

    @cached_property
    def fits(self) -> Mapping[str, LeafFit]:
        """The formula of every measured leaf."""
        measured: dict[str, dict[tuple[int, int], CostEntry]] = {}
        for (leaf, degree, level), entry in self.entries.items():
            measured.setdefault(leaf, {})[degree, level] = entry
        return {leaf: fit_leaf(leaf, points) for leaf, points in measured.items()}

    def doubts(self, environment: Environment | None = None) -> tuple[str, ...]:
        """Why the table may not hold in `environment` (default: here and now): another machine, other versions, its age.

        Empty for a shipped table, which claims no more than an order of magnitude anyway.
        """
        if self.kind == "shipped":
            return ()
        found = environment or here(tuple(self.libraries))
        return found.doubts(self.machine, self.libraries, self.date)

    def warnings(self, environment: Environment | None = None) -> tuple[str, ...]:
        """A sentence for each of the doubts."""
        return tuple(
            f"the cost table ({self.name}) was {doubt}; try `secateur calibrate`" for doubt in self.doubts(environment)
        )

    def require_backend(self, backend: str) -> CostTable:
        """The table itself; PlanError when it was measured with another back end."""
        if self.backend != backend:
            raise PlanError(
                f"cannot price for back end {backend!r}: the cost table ({self.name}) is of {self.backend!r}; try a table of "
                f"`secateur calibrate --backend {backend}`"
            )
        return self

    def to_json(self) -> bytes:
        """Canonical JSON with its digest."""
        return _canonical({**self._record(), "digest": self.digest})

    @property
    def digest(self) -> str:
        """sha256 over the canonical JSON without the digest."""
        return hashlib.sha256(_canonical(self._record())).hexdigest()

    def _record(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "backend": self.backend,
            "threads": self.threads,
            "machine": self.machine,
            "libraries": dict(self.libraries),
            "date": self.date,
            "kind": self.kind,
            "entries": [[*key, entry.seconds, entry.spread] for key, entry in sorted(self.entries.items())],
        }

    @classmethod
    def parse(cls, data: bytes) -> CostTable:
        """Strictly parse; WireError for anything malformed, altered, of another version or out of range."""
        if len(data) > _MAX_BYTES:
            raise WireError(
                f"cannot read a cost table of {len(data)} bytes: need at most {_MAX_BYTES}", Reason.LIMIT_EXCEEDED
            )
        try:
            return _parse(json.loads(data, parse_constant=_refuse_constant))
        except WireError:
            raise
        except Exception as error:  # hostile JSON may fail in any conversion
            raise WireError(
                f"cannot read the cost table: malformed ({type(error).__name__}); try calibrating again"
            ) from error

    def save(self, path: Path | str) -> Path:
        target = Path(path)
        target.write_bytes(self.to_json())
        return target

    @classmethod
    def load(cls, path: Path | str) -> CostTable:
        """Read a table made by `save`; WireError when it is absent or `parse` refuses it."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise WireError(f"cannot read the cost table {path}: {error.strerror or error}; try calibrating") from error
        return cls.parse(data)


def load_default(backend: str) -> CostTable:
    """The table shipped for `backend`, good for orders of magnitude; PlanError when there is none."""
    tables = {path.name.removesuffix(".json"): path for path in (resources.files(__package__) / "tables").iterdir()}
    if backend not in tables:
        raise PlanError(
            f"cannot price for backend {backend!r}: no cost table is shipped for it, need one of {', '.join(sorted(tables))}; "
            "try one of them, or calibrating"
        )
    return CostTable.parse(tables[backend].read_bytes())


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _refuse_constant(text: str) -> Any:
    raise WireError(f"cannot read the cost table: {text} is not a number of seconds; try calibrating again")


def _parse(record: Any) -> CostTable:
    if record["format"] != FORMAT or record["version"] != VERSION:
        raise WireError(
            f"cannot read cost table version {record['version']!r}: this build reads version {VERSION}; try calibrating again",
            Reason.VERSION_UNKNOWN,
        )
    if set(record) != _FIELDS:
        raise WireError("cannot read the cost table: fields are missing or unknown; try calibrating again")
    table = CostTable(
        backend=_text(record["backend"]),
        threads=_integer(record["threads"], 1, 4096),
        machine=_text(record["machine"]),
        libraries={_text(k): _text(v) for k, v in record["libraries"].items()},
        date=_date(record["date"]),
        kind=record["kind"],
        entries=_parse_entries(record["entries"]),
    )
    if table.kind not in ("measured", "shipped"):
        raise WireError(f"cannot read the cost table: got kind {table.kind!r}, need measured or shipped")
    if table.digest != record["digest"]:
        raise WireError("cannot use the cost table: it was altered; try calibrating again", Reason.DIGEST_MISMATCH)
    return table


def _parse_entries(rows: Any) -> dict[Key, CostEntry]:
    if not isinstance(rows, list) or not 0 < len(rows) <= _MAX_ENTRIES:
        raise WireError(f"cannot read the cost table: need 1 to {_MAX_ENTRIES} entries")
    entries: dict[Key, CostEntry] = {}
    for leaf, degree, level, seconds, spread in rows:
        key = (_text(leaf), _integer(degree, 1024, 1 << 17), _integer(level, 0, 63))
        entry = CostEntry(_number(seconds), _number(spread))
        _require_known(*key)
        if key in entries or not 0 < entry.seconds < 1e6 or not 0 <= entry.spread < 100:
            raise WireError(f"cannot read the cost table: the entry for {key} is repeated or out of range")
        entries[key] = entry
    return entries


def _require_known(leaf: str, degree: int, level: int) -> None:
    try:
        leaf_work(leaf, degree, level)
    except KeyError:
        raise WireError(
            f"cannot read the cost table: got leaf {leaf!r}, which this build has not; try calibrating again"
        ) from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 256:
        raise WireError("cannot read the cost table: need text of at most 256 characters")
    return value


def _date(value: Any) -> str:
    datetime.datetime.fromisoformat(_text(value))
    return str(value)


def _integer(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise WireError(f"cannot read the cost table: need a whole number from {low} to {high}")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise WireError("cannot read the cost table: need a finite number")
    return float(value)
