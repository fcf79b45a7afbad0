"""KeyService: resumable uploads of evaluation keys. Bytes pass through to the disk unread."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from he_runtime.errors import Reason, SecateurError
from protos import convert
from protos.gen.secateur.v1 import keys_pb2, keys_pb2_grpc
from protos.native import UploadOffer

from ..config import LimitsConfig
from ..engine.engine import Engine
from ..engine.runtime import ModelDescription
from ..errors import ServiceError
from ..models.repository import Repository
from .reports import KeyReports
from .store import KeyStore, ReadyUpload

__all__ = ["KeyServicer"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
# Verdicts on the keys themselves; any other failure of a check is the server's, and the upload is kept for a retry.
_KEYS_ARE_BAD = frozenset(
    {
        Reason.BYTES_MALFORMED,
        Reason.BYTES_TRUNCATED,
        Reason.DIGEST_MISMATCH,
        Reason.RESIDUE_OUT_OF_RANGE,
        Reason.VERSION_UNKNOWN,
        Reason.LEVEL_MISMATCH,
        Reason.SIZE_MISMATCH,
        Reason.KEY_MISSING,
        Reason.KEY_PARAMETERS_DIFFER,
        Reason.PARAMETERS_INVALID,
        Reason.LIMIT_EXCEEDED,
    }
)


class KeyServicer(keys_pb2_grpc.KeyServiceServicer):
    """The key store over the network."""

    def __init__(
        self,
        store: KeyStore,
        repository: Repository,
        engine: Engine,
        limits: LimitsConfig,
        validate_on_commit: bool,
        reports: KeyReports,
    ) -> None:
        self._reports = reports
        self._store = store
        self._repository = repository
        self._engine = engine
        self._limits = limits
        self._validate = validate_on_commit

    async def CreateUpload(self, request: keys_pb2.CreateUploadRequest, context: Any) -> keys_pb2.CreateUploadResponse:
        offer = convert.upload_offer_from_proto(request)
        self._check_offer(offer, self._repository.by_spec(offer.client_spec_digest))
        return convert.offer_reply_to_proto(await asyncio.to_thread(self._store.create, offer))

    def _check_offer(self, offer: UploadOffer, model: ModelDescription) -> None:
        if not _SHA256.fullmatch(offer.sha256):
            raise ServiceError(
                "cannot start the upload: need a sha256 of 64 lower-case hexadecimal digits; try hashing the whole file",
                Reason.BYTES_MALFORMED,
                subject="sha256",
            )
        if offer.params_digest != model.params_digest:
            raise ServiceError(
                f"cannot use the keys: got parameters {offer.params_digest[:12]!r}, need {model.params_digest[:12]}; "
                "try making keys from the current client spec",
                Reason.KEY_PARAMETERS_DIFFER,
                subject="params_digest",
            )
        if offer.total_bytes < 1:
            raise ServiceError(
                "cannot start the upload: got total_bytes of 0, need at least 1; try the size of the whole file",
                Reason.BYTES_MALFORMED,
                subject="total_bytes",
            )
        most = min(model.max_key_bytes, self._limits.max_upload_bytes)
        if offer.total_bytes > most:
            raise ServiceError(
                f"cannot take the keys: got {offer.total_bytes} bytes, need at most {most} for this model on this server; "
                "try only the keys that the client spec names",
                Reason.LIMIT_EXCEEDED,
                subject="total_bytes",
            )

    async def UploadChunks(
        self, request_iterator: AsyncIterator[keys_pb2.UploadChunkRequest], context: Any
    ) -> keys_pb2.UploadChunkResponse:
        upload_id = ""
        try:
            async for chunk in request_iterator:
                upload_id = upload_id or chunk.upload_id
                await self._append(upload_id, chunk)
        finally:
            # Also when the connection broke: what came is kept, and the client goes on from there.
            if upload_id:
                progress = await asyncio.to_thread(self._store.progress, upload_id)
        if not upload_id:
            raise ServiceError(
                "cannot upload: got a stream without a chunk, need at least one; try again from the committed offset",
                Reason.BYTES_TRUNCATED,
                subject="data",
            )
        return keys_pb2.UploadChunkResponse(committed_offset=progress.committed_offset)

    async def UploadChunk(self, request: keys_pb2.UploadChunkRequest, context: Any) -> keys_pb2.UploadChunkResponse:
        await self._append(request.upload_id, request)
        progress = await asyncio.to_thread(self._store.progress, request.upload_id)
        return keys_pb2.UploadChunkResponse(committed_offset=progress.committed_offset)

    async def _append(self, upload_id: str, chunk: keys_pb2.UploadChunkRequest) -> None:
        if len(chunk.data) > self._limits.max_chunk_bytes:
            raise ServiceError(
                f"cannot take the chunk: got {len(chunk.data)} bytes, need at most {self._limits.max_chunk_bytes}; try smaller ones",
                Reason.LIMIT_EXCEEDED,
                subject="data",
            )
        await asyncio.to_thread(self._store.append, upload_id, chunk.offset, chunk.data)
        self._reports.uploaded(len(chunk.data))

    async def GetUpload(self, request: keys_pb2.GetUploadRequest, context: Any) -> keys_pb2.GetUploadResponse:
        upload = await asyncio.to_thread(self._store.upload, request.upload_id)
        return keys_pb2.GetUploadResponse(upload=convert.upload_to_proto(upload))

    async def CommitUpload(self, request: keys_pb2.CommitUploadRequest, context: Any) -> keys_pb2.CommitUploadResponse:
        ready = await asyncio.to_thread(self._store.complete, request.upload_id)
        if self._validate:
            await self._check_keys(ready, context.time_remaining())
        key_set = await asyncio.to_thread(self._store.commit, ready)
        await self._reports.changed()
        return keys_pb2.CommitUploadResponse(key_set=convert.key_set_to_proto(key_set))

    async def _check_keys(self, ready: ReadyUpload, seconds: float | None) -> None:
        """Have a worker parse the keys against the plan that asked for them; it keeps them loaded for what follows."""
        model = self._repository.by_spec(ready.row.client_spec_digest)
        try:
            await self._engine.submit(
                "check_keys", model, b"", key_path=str(ready.path), key_sha256=ready.name, timeout_seconds=seconds
            )
        except SecateurError as error:
            if error.reason in _KEYS_ARE_BAD:
                await asyncio.to_thread(self._store.discard, ready)
            raise

    async def GetKeySet(self, request: keys_pb2.GetKeySetRequest, context: Any) -> keys_pb2.GetKeySetResponse:
        info = await asyncio.to_thread(self._store.info, request.key_set_id, request.handle)
        return keys_pb2.GetKeySetResponse(key_set=convert.key_set_to_proto(info))

    async def ListKeySets(self, request: keys_pb2.ListKeySetsRequest, context: Any) -> keys_pb2.ListKeySetsResponse:
        listing = await asyncio.to_thread(self._store.listing, request.page_size, request.page_token)
        return convert.key_set_listing_to_proto(listing)

    async def TouchKeySet(self, request: keys_pb2.TouchKeySetRequest, context: Any) -> keys_pb2.TouchKeySetResponse:
        info = await asyncio.to_thread(self._store.touch, request.key_set_id, request.handle)
        return keys_pb2.TouchKeySetResponse(key_set=convert.key_set_to_proto(info))

    async def DeleteKeySet(self, request: keys_pb2.DeleteKeySetRequest, context: Any) -> keys_pb2.DeleteKeySetResponse:
        await asyncio.to_thread(self._store.delete, request.key_set_id, request.handle)
        await self._reports.changed()
        return keys_pb2.DeleteKeySetResponse()
