"""Which keys a server was sent for one secret: digests and sizes in records.json beside it, and none of the keys.

What is listed here need not be made or sent again while the server still has it. A list that is lost, damaged or out of date
costs time and bytes, and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from he_runtime.params import CkksParams
from he_runtime.ring import KeyRequest, KeySetSpec
from he_runtime.wire import WrittenRecord, key_byte_size

from ._files import write_atomic

__all__ = ["RECORDS", "RecordIndex", "record_from_json", "record_to_json"]

RECORDS = "records.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class RecordIndex:
    """The list of one entry of the key store. Use it with the entry's lock held."""

    def __init__(self, entry: Path) -> None:
        self._path = entry / RECORDS

    def known(self, keys: KeySetSpec, params: CkksParams) -> dict[KeyRequest, WrittenRecord]:
        """What is known of exactly these keys: of the same element, level and gadget."""
        stored, found = self._read(), {}
        for request in keys.requests:
            record = record_from_json(stored.get(_name(keys.gadget, request.element, request.level)))
            about = request.element, request.level, key_byte_size(request.level, params, True, keys.gadget)
            if record is not None and (record.element, record.level, record.length) == about:
                found[request] = record
        return found

    def add(self, gadget: str, records: Iterable[WrittenRecord]) -> None:
        self._write({**self._read(), **{_name(gadget, r.element, r.level): record_to_json(r) for r in records}})

    def forget(self, gadget: str, records: Iterable[WrittenRecord]) -> None:
        gone = {_name(gadget, r.element, r.level) for r in records}
        self._write({name: value for name, value in self._read().items() if name not in gone})

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            stored = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def _write(self, stored: Mapping[str, Any]) -> None:
        write_atomic(self._path, json.dumps(stored, separators=(",", ":"), sort_keys=True).encode())


def _name(gadget: str, element: int, level: int) -> str:
    return f"{gadget}:{element}:{level}"


def record_to_json(record: WrittenRecord) -> list[Any]:
    return [record.element, record.level, record.length, record.digest.hex(), record.sha256]


def record_from_json(value: Any) -> WrittenRecord | None:
    """None for what is no record."""
    if not isinstance(value, list) or len(value) != 5:
        return None
    numbers, digests = value[:3], value[3:]
    if any(type(n) is not int or n < 0 for n in numbers) or not all(
        isinstance(d, str) and _DIGEST.fullmatch(d) for d in digests
    ):
        return None
    return WrittenRecord(value[0], value[1], value[2], bytes.fromhex(value[3]), value[4])
