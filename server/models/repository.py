"""The model repository: which versions are served, and which one is the default.

Versions lie in <root>/<name>/<version>/, and every one is verified before it is served. A version that does not verify is kept as a
named failure: the others are served, and asking for it gets its error. The default version is the one that the operator
set, else the latest, by natural order (2 < 10, 1.9 < 1.10). Of each model the newest versions are served and the default.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from he_runtime.errors import ModelError, Reason, SecateurError
from protos.native import ModelSummary

from ..engine.runtime import ModelDescription, Runtime
from ..errors import ConfigError, ServiceError
from ..identity.tenant import current_caller
from ..observe.logs import event

__all__ = ["Broken", "Repository", "describe", "directories", "natural_order"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ALL = 1 << 30


@dataclass(frozen=True)
class Broken:
    """A version that cannot be served, and why."""

    name: str
    version: str
    error: SecateurError


def natural_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key under which numbers inside a version compare as numbers."""
    parts = re.findall(r"\d+|\D+", version)
    return tuple((1, int(p), "") if p.isdigit() else (0, 0, p) for p in parts)


class Repository:
    """The versions that are served. It belongs to the event loop, and every change is whole: no call sees half of one."""

    def __init__(
        self, models: list[ModelDescription], broken: list[Broken], chosen: Mapping[str, str] | None = None
    ) -> None:
        self._models: dict[str, dict[str, ModelDescription]] = {}
        self._broken = {(b.name, b.version): b for b in broken}
        self._chosen = dict(chosen or {})
        for model in models:
            self.add(model)

    @classmethod
    def scan(
        cls,
        root: Path,
        runtime: Runtime,
        *,
        keep: int = _ALL,
        chosen: Mapping[str, str] | None = None,
        copy: Callable[[Path], Path] = lambda directory: directory,
    ) -> Repository:
        """Verify the newest `keep` versions of each model under `root` and the `chosen` defaults, each in its `copy`.

        Raises ConfigError when there is no such directory.
        """
        models: list[ModelDescription] = []
        broken: list[Broken] = []
        for name, versions in directories(root).items():
            good = 0
            for version in sorted(versions, key=natural_order, reverse=True):
                if good >= keep and version != (chosen or {}).get(name):
                    continue
                try:
                    models.append(describe(runtime, copy, versions[version], name, version))
                    good += 1
                except SecateurError as error:
                    _log_broken(name, version, error)
                    broken.append(Broken(name, version, error))
        return cls(models, broken, chosen)

    # What is served

    @property
    def broken(self) -> tuple[Broken, ...]:
        return tuple(self._broken.values())

    @property
    def chosen(self) -> dict[str, str]:
        """The defaults that the operator set, by model."""
        return dict(self._chosen)

    @property
    def _visible(self) -> dict[str, dict[str, ModelDescription]]:
        """What exists for the caller that the current task works for: everything, outside of a call."""
        caller = current_caller()
        return {name: versions for name, versions in self._models.items() if caller.may_use(name)}

    def summaries(self) -> list[ModelSummary]:
        return [self.summary(name) for name in sorted(self._visible)]

    def summary(self, name: str) -> ModelSummary:
        return ModelSummary(name, tuple(self._models[name]), self.default_version(name))

    def models(self) -> list[ModelDescription]:
        """Every version that is served."""
        return [model for versions in self._models.values() for model in versions.values()]

    def defaults(self) -> list[ModelDescription]:
        """The default version of every model."""
        return [versions[self.default_version(name)] for name, versions in self._models.items()]

    def default_version(self, name: str) -> str:
        """The version that answers calls that name none; empty where none is served."""
        chosen = self._chosen.get(name, "")
        return chosen if self.find(name, chosen) is not None else self.latest_version(name)

    def latest_version(self, name: str) -> str:
        """The last of the versions that are served, in their order; empty where there is none."""
        return next(reversed(self._models.get(name, {})), "")

    @property
    def max_request_bytes(self) -> int:
        """The most that the ciphertexts of one request can be, whatever the model."""
        return max((m.max_request_bytes for m in self.models()), default=0)

    def find(self, name: str, version: str) -> ModelDescription | None:
        """A version, when it is served."""
        return self._models.get(name, {}).get(version)

    def get(self, name: str, version: str = "") -> ModelDescription:
        """A version (empty: the default); MODEL_UNKNOWN naming what there is, or the reason of a broken version.

        To a caller who may not use a model it is unknown, here and wherever else callers name one.
        """
        visible = self._visible
        versions = visible.get(name, {})
        model = versions.get(version or self.default_version(name))
        if model is not None:
            return model
        for broken in self.broken:
            if broken.name == name and version in ("", broken.version) and current_caller().may_use(name):
                # A fresh error without the verifier's text, which may name the operator's directories.
                raise ServiceError(
                    f"cannot serve model {name!r} version {broken.version!r}: got one that does not verify on this server; "
                    "try another version, or the server's operator",
                    broken.error.reason,
                    subject=name,
                )
        known = (
            f"version {', '.join(versions)}"
            if versions
            else f"one of {', '.join(sorted(visible)) or 'none: this server has no models'}"
        )
        asked = f"{name!r}" + (f" version {version!r}" if version else "")
        raise ServiceError(
            f"cannot find model {asked[:200]}: need {known}; try listing the models",
            Reason.MODEL_UNKNOWN,
            subject=name[:64],
        )

    def for_call(self, name: str, version: str, client_spec_digest: str) -> ModelDescription:
        """The version that answers an inference: the named one, else the one whose client spec the input was packed by.

        So a client that still holds the spec and the keys of an older version is answered by it while it is served, and
        no call is lost when the default changes. A digest that no version has is left to the caller to refuse.
        """
        if client_spec_digest and not version:
            for model in self._visible.get(name, {}).values():
                if model.client_spec_digest == client_spec_digest:
                    return model
        return self.get(name, version)

    def by_spec(self, client_spec_digest: str) -> ModelDescription:
        """The version whose client spec has this digest; MODEL_UNKNOWN when none (any more) has."""
        for model in (m for versions in self._visible.values() for m in versions.values()):
            if model.client_spec_digest == client_spec_digest:
                return model
        raise ServiceError(
            f"cannot find a model with client spec {client_spec_digest[:12]!r}: got one that is not served here (any more); "
            "try fetching the spec again",
            Reason.MODEL_UNKNOWN,
            subject="client_spec_digest",
        )

    # Changes

    def add(self, model: ModelDescription) -> None:
        """Serve a version from now on; it is the default if it is the latest and the operator set none."""
        versions = {**self._models.get(model.name, {}), model.version: model}
        self._models[model.name] = {v: versions[v] for v in sorted(versions, key=natural_order)}
        self._broken.pop((model.name, model.version), None)

    def add_broken(self, name: str, version: str, error: SecateurError) -> None:
        """Remember why a version cannot be served. One that is served already goes on being served."""
        _log_broken(name, version, error)
        if self.find(name, version) is None:
            self._broken[name, version] = Broken(name, version, error)

    def remove(self, name: str, version: str) -> None:
        """Serve a version no longer; calls under way keep the description that they got."""
        self._broken.pop((name, version), None)
        self._models.get(name, {}).pop(version, None)
        if not self._models.get(name, True):
            del self._models[name]
        if self._chosen.get(name) == version:
            del self._chosen[name]

    def set_default(self, name: str, version: str) -> None:
        """Answer calls that name no version by this one, from now on; empty: by the latest again."""
        if version:
            self._chosen[name] = self.get(name, version).version
        else:
            self._chosen.pop(name, None)

    def beyond(self, keep: int) -> list[ModelDescription]:
        """The versions that are neither among the newest `keep` of their model nor its default."""
        return [
            model
            for name, versions in self._models.items()
            for model in list(versions.values())[:-keep]
            if model.version != self.default_version(name)
        ]


def _log_broken(name: str, version: str, error: SecateurError) -> None:
    facts: dict[str, Any] = {"model": name, "version": version, "reason": error.reason}
    event("model not served", level=logging.ERROR, cause=error.message, **facts)


def describe(
    runtime: Runtime, copy: Callable[[Path], Path], directory: Path, name: str, version: str
) -> ModelDescription:
    """Copy, verify and describe a version. Raises nothing but SecateurError: one damaged version must not keep the
    others from being served."""
    try:
        return runtime.describe(copy(directory), name, version)
    except SecateurError:
        raise
    except Exception as error:
        what = (error.strerror if isinstance(error, OSError) else None) or f"damaged files ({type(error).__name__})"
        raise ModelError(f"cannot read {directory}: got {what}; try writing this version again") from error


def directories(root: Path) -> dict[str, dict[str, Path]]:
    """Model -> version -> its directory; ConfigError when `root` is no directory."""
    if not root.is_dir():
        raise ConfigError(f"cannot use models = {root}: need a directory of <name>/<version>/")
    found: dict[str, dict[str, Path]] = {}
    for model in _named(root):
        for version in _named(model):
            found.setdefault(model.name, {})[version.name] = version
    return found


def _named(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if path.is_dir() and _NAME.fullmatch(path.name):
            yield path
