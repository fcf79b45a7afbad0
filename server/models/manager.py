"""Changing what is served while it is served: load, unload, set the default, look for new versions.

A version becomes visible only when every worker has loaded it, so no caller waits for that. Versions are immutable: one that is
served is never replaced by other files of the same name. Whatever is refused changes nothing, and what was served goes on being served.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from he_runtime.errors import ModelError, Reason, SecateurError
from protos.native import ModelSummary

from ..config import ServerConfig
from ..engine.runtime import ModelDescription, Runtime
from ..errors import ConfigError, ServiceError
from ..keys import durable
from ..observe.logs import event
from .checksums import LIST, tree
from .repository import Repository, describe, directories, natural_order
from .snapshots import Snapshots

__all__ = ["ModelManager", "Preload"]

Preload = Callable[[list[ModelDescription]], Awaitable[None]]
_Signature = tuple[tuple[str, int, int], ...]
_CHOSEN = "defaults.json"


class ModelManager:
    """The repository of a running server, and the operator's changes to it. One at a time; belongs to the event loop.

    `preload` loads models in every worker, now and in those that start later.
    """

    def __init__(self, config: ServerConfig, runtime: Runtime) -> None:
        self._config = config
        self._runtime = runtime
        self._state = config.state / "models"
        self._snapshots = Snapshots(self._state)
        self._lock = asyncio.Lock()
        self._seen: dict[tuple[str, str], _Signature] = {}  # of versions that are not served, when last looked at
        self._refused: dict[tuple[str, str], _Signature] = {}
        self._retired: set[Path] = set()  # copies that calls under way may still be on
        self._preload: Preload | None = None
        self._preload_later: Callable[[list[ModelDescription]], None] = lambda models: None
        self._max_request_bytes = 0
        self.on_change: Callable[[], Awaitable[None]] | None = None
        self.repository = self._scan()

    def _scan(self) -> Repository:
        """What the directory holds; also forgets the copies of earlier runs."""
        repository = Repository.scan(
            self._config.models,
            self._runtime,
            keep=self._config.repository.keep_versions,
            chosen=_read_chosen(self._state / _CHOSEN),
            copy=self._copy,
        )
        self._snapshots.sweep({model.directory for model in repository.models()})
        return repository

    def _copy(self, directory: Path) -> Path:
        return self._snapshots.take(directory, require_checksums=self._config.repository.require_checksums)

    def serve_with(
        self, preload: Preload, preload_later: Callable[[list[ModelDescription]], None], max_request_bytes: int
    ) -> None:
        """From now on changes are carried out with these workers, for requests up to this many bytes of ciphertexts."""
        self._preload, self._preload_later, self._max_request_bytes = preload, preload_later, max_request_bytes

    def present(self) -> set[tuple[str, str]]:
        """Model and version of everything below the operator's directory. Blocks on the disk."""
        return {(name, version) for name, versions in directories(self._config.models).items() for version in versions}

    # The operator's changes

    async def load(self, name: str, version: str, *, keep_default: bool = False) -> ModelDescription:
        """Verify a version of the directory, load it in every worker, then serve it; the latest becomes the default.

        With `keep_default` the default stays what it is. Asking for a version that is served verifies its files again.
        Raises MODEL_UNKNOWN for one that is not there, DIGEST_MISMATCH for files that changed, or why it does not verify.
        """
        async with self._lock:
            directory = (await asyncio.to_thread(directories, self._config.models)).get(name, {}).get(version)
            if directory is None:
                raise ServiceError(
                    f"cannot load {name!r} version {version!r}: got no such directory below the server's models; "
                    "try copying it there first",
                    Reason.MODEL_UNKNOWN,
                    subject=name[:64],
                )
            return await self._load(name, version, directory, keep_default)

    async def _load(self, name: str, version: str, directory: Path, keep_default: bool) -> ModelDescription:
        model = None
        try:
            model = await asyncio.to_thread(describe, self._runtime, self._copy, directory, name, version)
            served = self.repository.find(name, version)
            if served is not None:
                return _same(served, model)
            self._require_fit(model)
            if self._preload is not None:
                await self._preload([model])
        except SecateurError as error:
            if model is not None:
                self._retire_copy(model.directory)
            self.repository.add_broken(name, version, error)
            raise
        if keep_default and self.repository.default_version(name):
            self.repository.set_default(name, self.repository.default_version(name))
            await self._keep_chosen()
        self.repository.add(model)
        self._retired.discard(model.directory)
        event("model served", model=name, version=version, plan=model.plan_digest)
        for old in self.repository.beyond(self._config.repository.keep_versions):
            self._retire(old)
        await self._changed()
        return model

    def _require_fit(self, model: ModelDescription) -> None:
        if model.max_request_bytes > self._max_request_bytes:
            raise ServiceError(
                f"cannot serve {model.name} version {model.version}: got requests of {model.max_request_bytes} bytes, need at "
                f"most {self._max_request_bytes} while this server runs; try limits.max_message_bytes, and a restart",
                Reason.LIMIT_EXCEEDED,
                subject=model.name,
            )

    async def unload(self, name: str, version: str) -> None:
        """Serve a version no longer. Its default gives way only as the last version of a model."""
        async with self._lock:
            model = self.repository.get(name, version) if version else None
            if model is None:
                raise ServiceError(
                    f"cannot unload {name!r}: got no version, need one; try `secateur admin versions`",
                    Reason.MODEL_UNKNOWN,
                    subject=name[:64],
                )
            summary = self.repository.summary(name)
            if version == summary.default_version and len(summary.versions) > 1:
                raise ServiceError(
                    f"cannot unload {name} version {version}: got the default, need another one; try setting another default first",
                    Reason.MODEL_INVALID,
                    subject=name,
                )
            self._retire(model)
            # Or the next look at the directory would serve it again.
            self._refused[name, version] = await asyncio.to_thread(self._signature, name, version)
            await self._keep_chosen()
            await self._changed()

    def _retire(self, model: ModelDescription) -> None:
        self.repository.remove(model.name, model.version)
        event("model unloaded", model=model.name, version=model.version)
        self._retire_copy(model.directory)

    def _retire_copy(self, copy: Path) -> None:
        """Remove a copy once no call can be on it any more."""
        self._retired.add(copy)
        loop = asyncio.get_running_loop()
        loop.call_later(2 * self._config.limits.max_evaluate_seconds, self._forget, copy)

    def _forget(self, copy: Path) -> None:
        if copy in self._retired:
            self._retired.discard(copy)
            used = {model.directory for model in self.repository.models()} | self._retired
            asyncio.get_running_loop().run_in_executor(None, self._snapshots.remove, copy, used)

    async def set_default(self, name: str, version: str) -> ModelSummary:
        """Let calls that name no version be answered by this one (empty: by the latest), also after a restart."""
        async with self._lock:
            model = self.repository.get(name, version or self.repository.latest_version(name))
            if self._preload is not None:
                await self._preload([model])  # workers may have dropped it since it was the default
            self.repository.set_default(name, version)
            await self._keep_chosen()
            await self._changed()
            summary = self.repository.summary(name)
            event("default set", model=name, version=summary.default_version)
            return summary

    async def _keep_chosen(self) -> None:
        await asyncio.to_thread(_write_chosen, self._state / _CHOSEN, self.repository.chosen)

    async def _changed(self) -> None:
        if self._config.engine.preload:
            defaults = self.repository.defaults()
            self._preload_later([*defaults, *(m for m in self.repository.models() if m not in defaults)])
        if self.on_change is not None:
            await self.on_change()

    # Looking for new versions

    async def watch(self) -> None:
        """Look at the directory every `repository.poll_seconds`, until cancelled."""
        while True:
            await asyncio.sleep(self._config.repository.poll_seconds)
            try:
                await self.poll()
            except (OSError, SecateurError) as error:
                event("cannot look for models", level=logging.ERROR, cause=str(error))

    async def poll(self) -> None:
        """Load the versions that appeared, newest first; one that is still being written waits for the next look.

        A version that was refused or unloaded is looked at again when its files change.
        """
        async with self._lock:
            found = await asyncio.to_thread(self._candidates)
            settled = [c for c, signature in found.items() if self._seen.get(c) == signature]
            self._seen = found
            for name, version in settled:
                signature = found[name, version]
                if self._refused.get((name, version)) == signature:
                    continue
                try:
                    await self._load(name, version, self._config.models / name / version, False)
                except SecateurError:
                    self._refused[name, version] = signature  # said in the log, once

    def _candidates(self) -> dict[tuple[str, str], _Signature]:
        """The versions that are not served but would be among the newest, and what their files look like."""
        keep, found = self._config.repository.keep_versions, {}
        for name, versions in directories(self._config.models).items():
            served = [v for v in versions if self.repository.find(name, v)]
            for version in sorted(set(versions) - set(served), key=natural_order, reverse=True):
                newer = [v for v in served if natural_order(v) > natural_order(version)]
                if len(newer) < keep:
                    found[name, version] = self._signature(name, version)
        return found

    def _signature(self, name: str, version: str) -> _Signature:
        """Names, sizes and times of a version's files; a version that cannot be read has none."""
        directory = self._config.models / name / version
        try:
            listed = [Path(LIST)] if (directory / LIST).is_file() else []
            stats = [(p.as_posix(), (directory / p).stat()) for p in (*tree(directory), *listed)]
        except (OSError, SecateurError):
            return ()
        return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _same(served: ModelDescription, found: ModelDescription) -> ModelDescription:
    """The served version where the files that were found are its own; DIGEST_MISMATCH for others."""
    if found.directory != served.directory:
        raise ModelError(
            f"cannot load {served.name} version {served.version}: got other files than those that are served under "
            "this version, which go on being served; try a new version number",
            Reason.DIGEST_MISMATCH,
        )
    return served


def _read_chosen(path: Path) -> dict[str, str]:
    try:
        record = json.loads(path.read_text())
        return {str(name): str(version) for name, version in record.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"cannot read {path}: {type(error).__name__}; try removing it, and set the defaults again"
        ) from error


def _write_chosen(path: Path, chosen: dict[str, str]) -> None:
    part = path.with_suffix(".part")
    with part.open("w") as file:
        json.dump(chosen, file, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    durable.move(part, path)
