"""The model repository: <root>/<name>/<version>/, every version verified before it is served.

A version that does not verify is kept as a named failure: the others are served, and asking for it gets its error.
The default version is the latest one that verifies, by natural order (2 < 10, 1.9 < 1.10).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from he_runtime.errors import ModelError, Reason, SecateurError
from protos.native import ModelSummary

from ..engine.runtime import ModelDescription, Runtime
from ..errors import ConfigError, ServiceError
from ..observe.logs import event

__all__ = ["Broken", "Repository", "natural_order"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


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
    """The models that were there when the server started."""

    def __init__(self, models: list[ModelDescription], broken: list[Broken]) -> None:
        self._models: dict[str, dict[str, ModelDescription]] = {}
        for model in sorted(models, key=lambda m: (m.name, natural_order(m.version))):
            self._models.setdefault(model.name, {})[model.version] = model
        self.broken = tuple(broken)
        self._by_spec = {m.client_spec_digest: m for m in models}

    @classmethod
    def scan(cls, root: Path, runtime: Runtime) -> Repository:
        """Verify every version under `root`; ConfigError when there is no such directory."""
        models: list[ModelDescription] = []
        broken: list[Broken] = []
        for name, version, directory in _directories(root):
            try:
                models.append(_describe(runtime, directory, name, version))
            except SecateurError as error:
                facts: dict[str, Any] = {"model": name, "version": version, "reason": error.reason}
                event("model not served", level=logging.ERROR, cause=error.message, **facts)
                broken.append(Broken(name, version, error))
        return cls(models, broken)

    def summaries(self) -> list[ModelSummary]:
        return [self.summary(name) for name in self._models]

    def summary(self, name: str) -> ModelSummary:
        versions = tuple(self._models[name])
        return ModelSummary(name, versions, versions[-1])

    @property
    def max_request_bytes(self) -> int:
        """The most that the ciphertexts of one request can be, whatever the model."""
        return max((m.max_request_bytes for m in self._by_spec.values()), default=0)

    def defaults(self) -> list[ModelDescription]:
        """The default version of every model."""
        return [list(versions.values())[-1] for versions in self._models.values()]

    def get(self, name: str, version: str = "") -> ModelDescription:
        """A version (empty: the default); MODEL_UNKNOWN naming what there is, or the reason of a broken version."""
        versions = self._models.get(name, {})
        wanted = version or next(reversed(versions), "")
        if wanted in versions:
            return versions[wanted]
        for broken in self.broken:
            if broken.name == name and version in ("", broken.version):
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
            else f"one of {', '.join(self._models) or 'none: this server has no models'}"
        )
        asked = f"{name!r}" + (f" version {version!r}" if version else "")
        raise ServiceError(
            f"cannot find model {asked[:200]}: need {known}; try listing the models",
            Reason.MODEL_UNKNOWN,
            subject=name[:64],
        )

    def by_spec(self, client_spec_digest: str) -> ModelDescription:
        """The version whose client spec has this digest; MODEL_UNKNOWN when none (any more) has."""
        model = self._by_spec.get(client_spec_digest)
        if model is None:
            raise ServiceError(
                f"cannot find a model with client spec {client_spec_digest[:12]!r}: got one that is not served here (any more); "
                "try fetching the spec again",
                Reason.MODEL_UNKNOWN,
                subject="client_spec_digest",
            )
        return model


def _describe(runtime: Runtime, directory: Path, name: str, version: str) -> ModelDescription:
    """Raises nothing but SecateurError: one damaged version must not keep the others from being served."""
    try:
        return runtime.describe(directory, name, version)
    except SecateurError:
        raise
    except Exception as error:
        raise ModelError(
            f"cannot read {directory}: got damaged files ({type(error).__name__}); try writing this version again"
        ) from error


def _directories(root: Path) -> Iterator[tuple[str, str, Path]]:
    if not root.is_dir():
        raise ConfigError(f"cannot use models = {root}: need a directory of <name>/<version>/")
    for model in sorted(root.iterdir()):
        if not model.is_dir() or not _NAME.fullmatch(model.name):
            continue
        for version in sorted(model.iterdir()):
            if version.is_dir() and _NAME.fullmatch(version.name):
                yield model.name, version.name, version
