"""What a client is willing to do for a server, whatever the server asks."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Upper bounds on a server's demands. A spec or a reply beyond one of them is refused before it costs anything."""

    max_keys: int = 256
    max_key_bytes: int = 2048 * MIB  # the whole upload
    max_ciphertexts: int = 256  # of one input, and of one output
    max_spec_bytes: int = 8 * MIB
    max_message_bytes: int = 64 * MIB  # one gRPC message, either way
    max_labels: int = 100_000
    max_text_chars: int = 256  # a label, a name or a version
    min_log2_scale: float = 10.0
    max_log2_scale: float = 120.0
