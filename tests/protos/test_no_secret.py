"""No message can carry a secret key: neither a field nor a message is named for one, and every bytes field is known."""

from __future__ import annotations

import re
from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor

from protos.gen.secateur.v1 import admin_pb2, inference_pb2, keys_pb2, model_pb2

FILES: tuple[FileDescriptor, ...] = (
    model_pb2.DESCRIPTOR,
    keys_pb2.DESCRIPTOR,
    inference_pb2.DESCRIPTOR,
    admin_pb2.DESCRIPTOR,
)
FORBIDDEN = re.compile(r"secret|private|decrypt|(^|_)sk(_|$)|seed|plaintext|noise", re.IGNORECASE)
# Each bytes field, with what it holds. A new one needs a line here and a reason why it cannot be a secret key.
BYTES_FIELDS = {
    "secateur.v1.GetModelResponse.client_spec",  # from the server; JSON without keys
    "secateur.v1.UploadChunkRequest.data",  # part of a key-set object; the codec has no record kind for a secret
    "secateur.v1.CreateUploadRequest.manifest",  # digests and sizes of pieces; their bytes are compared with both
    "secateur.v1.CreateUploadRequest.assumed",  # zeros and ones, one for each piece
    "secateur.v1.InferRequest.ciphertexts",  # a ciphertext object
    "secateur.v1.InferResponse.ciphertexts",  # a ciphertext object, from the server
}


def _messages(container: Descriptor) -> Iterator[Descriptor]:
    yield container
    for nested in container.nested_types:
        yield from _messages(nested)


def _all_messages() -> list[Descriptor]:
    return [m for file in FILES for top in file.message_types_by_name.values() for m in _messages(top)]


def test_no_name_speaks_of_a_secret() -> None:
    names = [m.full_name for m in _all_messages()] + [f.full_name for m in _all_messages() for f in m.fields]
    assert len(names) > 60
    assert [n for n in names if FORBIDDEN.search(n.rsplit(".", 1)[-1])] == []


def test_every_bytes_field_is_listed() -> None:
    fields = {f.full_name for m in _all_messages() for f in m.fields if f.type == FieldDescriptor.TYPE_BYTES}
    assert fields == BYTES_FIELDS


def test_no_field_is_opaque() -> None:
    """An Any, a Struct or an extension range could carry anything."""
    foreign = [
        f.full_name
        for m in _all_messages()
        for f in m.fields
        if f.message_type is not None and not f.message_type.full_name.startswith("secateur.v1.")
    ]
    assert foreign == []
