"""What code deep inside a call knows that its audit record should hold."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["begin_notes", "note"]

_NOTES: ContextVar[dict[str, str] | None] = ContextVar("audit notes", default=None)
_MAX_TEXT_CHARS = 128


def begin_notes() -> dict[str, str]:
    """Start the notes of the call that this task works for."""
    notes: dict[str, str] = {}
    _NOTES.set(notes)
    return notes


def note(**facts: str) -> None:
    """Add facts to the audit record of this call: names and prefixes of digests, never ids that open something."""
    notes = _NOTES.get()
    if notes is not None:
        notes.update({name: text[:_MAX_TEXT_CHARS] for name, text in facts.items() if text})
