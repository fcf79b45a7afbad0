"""The project's own binary codec for everything homomorphic that crosses the network; docs/wire.md has the bytes.

Ciphertexts, public keys, evaluation keys and key sets, and nothing else: no kind of object can hold a secret key.
Decoders treat every byte as hostile and raise only SecateurError; encoders refuse what the decoders would.
"""

from __future__ import annotations

from .ciphertexts import ciphertexts_byte_size, decode_ciphertexts, encode_ciphertexts
from .expansion import expand_seed
from .header import HEADER_BYTES, WIRE_VERSION, Kind
from .key_set import KeySetRow, KeySetWriter, WrittenRecord, key_set_byte_size, read_key_set, read_key_table
from .keys import decode_key, encode_key, key_byte_size
from .public_key import decode_public_key, encode_public_key

__all__ = [
    "HEADER_BYTES",
    "WIRE_VERSION",
    "KeySetRow",
    "KeySetWriter",
    "Kind",
    "WrittenRecord",
    "ciphertexts_byte_size",
    "decode_ciphertexts",
    "decode_key",
    "decode_public_key",
    "encode_ciphertexts",
    "encode_key",
    "encode_public_key",
    "expand_seed",
    "key_byte_size",
    "key_set_byte_size",
    "read_key_set",
    "read_key_table",
]
