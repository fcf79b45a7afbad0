"""How often decryptions under a key have been released, kept beside the key and bound to it.

    <key entry>/releases.json    {"key": digest of the key file, "used": n, "releases": budget, "statistical_bits": s}

The ledger is made with the key. A key whose ledger is missing, damaged or another key's has no releases left, so that
deleting a file resets nothing; only a new key starts a new budget. What is used is on disk before the noise is drawn. A
copy of the whole entry made earlier and put back cannot be noticed: the budget is the key owner's own protection.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ._files import locked, storing, write_atomic
from .errors import ReleaseBudgetSpent, ReleaseRefused

__all__ = ["Ledger", "charge", "open_ledger", "start_ledger"]

_NAME, _LOCK, _KEY_FILE = "releases.json", "releases.lock", "secret.key"
_LOCK_SECONDS = 60.0
_REMEDY = "try KeyStore.delete and make new keys"


@dataclass(frozen=True)
class Ledger:
    """`releases` and `statistical_bits` are what the first release of the key declared, 0 before it."""

    key: str
    used: int = 0
    releases: int = 0
    statistical_bits: int = 0

    @property
    def left(self) -> int:
        """Releases that the declared budget still allows."""
        return max(0, self.releases - self.used)


def start_ledger(entry: Path) -> None:
    """Begin the ledger of a key that has just been made and stored."""
    write_atomic(entry / _NAME, _to_bytes(Ledger(_key_digest(entry))))


def open_ledger(entry: Path) -> Ledger:
    """ReleaseBudgetSpent where there is none that belongs to the key."""
    try:
        record = json.loads((entry / _NAME).read_bytes())
        ledger = Ledger(*(record[name] for name in ("key", "used", "releases", "statistical_bits")))
        counts = (ledger.used, ledger.releases, ledger.statistical_bits)
        if not all(type(n) is int and n >= 0 for n in counts) or ledger.key != _key_digest(entry):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReleaseBudgetSpent(
            f"cannot release a decryption: the record of earlier releases in {entry} is missing, damaged or of another key, "
            f"need the one that was made with the key; {_REMEDY}"
        ) from error
    return ledger


def charge(entry: Path, count: int, releases: int, statistical_bits: int) -> Ledger:
    """Use `count` releases, durably, and return the ledger after it. The first call declares the budget.

    Raises ReleaseBudgetSpent when fewer are left, ReleaseRefused where the key has another budget, KeyStoreError when
    the disk does not take it.
    """
    with locked(entry / _LOCK, _LOCK_SECONDS):
        ledger = open_ledger(entry)
        if not ledger.used:
            ledger = replace(ledger, releases=releases, statistical_bits=statistical_bits)
        if (ledger.releases, ledger.statistical_bits) != (releases, statistical_bits):
            raise ReleaseRefused(
                f"cannot release a decryption: got a budget of {releases} at {statistical_bits} bits, need the "
                f"{ledger.releases} at {ledger.statistical_bits} bits that this key began with; try these, or {_REMEDY[4:]}"
            )
        if count > ledger.left:
            raise ReleaseBudgetSpent(
                f"cannot release {count} decryptions: {ledger.used} of {ledger.releases} are used up, need {count} left; "
                f"{_REMEDY}"
            )
        ledger = replace(ledger, used=ledger.used + count)
        write_atomic(entry / _NAME, _to_bytes(ledger))
    return ledger


def _to_bytes(ledger: Ledger) -> bytes:
    return json.dumps(asdict(ledger), indent=1, sort_keys=True).encode()


def _key_digest(entry: Path) -> str:
    """Names the key without telling it: the file holds thousands of secret coefficients."""
    with storing(entry / _KEY_FILE):
        data = (entry / _KEY_FILE).read_bytes()
    return hashlib.sha256(b"secateur release ledger\n" + data).hexdigest()
