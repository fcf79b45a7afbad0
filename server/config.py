"""One TOML file plus environment overrides, typed and strict.

Every field is `SECATEUR_SERVER_<KEY>` or `SECATEUR_SERVER_<SECTION>_<KEY>` in the environment, which wins over the file. An
unknown key, a wrong type or a value out of bounds is a ConfigError that names the key. Relative paths in a file
are relative to that file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from he_runtime.backends import default_backend

from .admin.settings import AdminConfig
from .engine.settings import AdmissionConfig
from .errors import ConfigError
from .identity.settings import AuditConfig, IdentityConfig, JwtConfig, TlsConfig
from .inference.settings import JobsConfig
from .keys.settings import KeysConfig
from .models.settings import RepositoryConfig
from .observe.settings import MetricsConfig, TracingConfig

__all__ = [
    "EngineConfig",
    "KeysConfig",
    "LimitsConfig",
    "ServerConfig",
    "TlsConfig",
    "from_mapping",
    "load_config",
]

ENVIRONMENT_PREFIX = "SECATEUR_SERVER_"
_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True)
class LimitsConfig:
    """What one request may ask for."""

    max_message_bytes: int = 64 * _MIB  # one gRPC message; lowered at the start to what the models have use for
    max_chunk_bytes: int = _MIB  # data of one UploadChunkRequest
    max_upload_bytes: int = 2 * _GIB  # one key set
    max_concurrent_rpcs: int = 256
    max_connection_rpcs: int = 64  # of them for one connection; further ones wait on its client's side
    receive_seconds: float = 60.0  # for each message of a request to arrive whole
    max_queue: int = 32  # requests that wait for a worker
    max_evaluate_seconds: float = 600.0  # also the deadline of a caller who states none
    request_window_seconds: float = 120.0  # how long a request_id is remembered
    request_window_bytes: int = 64 * _MIB  # replies kept for it


@dataclass(frozen=True)
class EngineConfig:
    """The worker processes."""

    workers: int = 1
    workers_backend: str = "local"  # or ray: replicas of Ray Serve, see docs/operating.md
    ray_address: str = ""  # of a cluster that this machine is part of, or auto; empty: one of our own on this machine
    threads: int = 1  # per worker, for libraries with a thread pool of their own
    backend: str = field(default_factory=default_backend)
    runtime: str = "server.engine.he_model"  # module with describe, estimate and build: see server.engine.runtime
    cost_table: Path | None = None  # measured table; none: the one that ships
    key_cache_bytes: int = 2 * _GIB  # loaded keys per worker
    models_per_worker: int = 8
    preload: bool = True  # load default versions before serving
    operands: Path | None = None  # private directory of encoded weights that workers map; none: <state>/operands
    niceness: int = 5  # of the workers: the front door comes first where processors are short; 0: no difference
    cancel_grace_seconds: float = 10.0  # a worker that ignores a cancellation for this long is replaced
    start_seconds: float = 60.0  # a worker that is not up by then has failed


@dataclass(frozen=True)
class ServerConfig:
    """Everything the server can be told. `models` holds <name>/<version>/, `state` all that the server keeps (state/layout.py)."""

    address: str = "127.0.0.1:50051"  # port 0: any free one
    models: Path = Path("models")
    state: Path = Path("state")
    drain_seconds: float = 30.0
    log_level: str = "info"
    reflection: bool = True
    tls: TlsConfig = field(default_factory=TlsConfig)
    identity: IdentityConfig = field(default_factory=IdentityConfig)
    jwt: JwtConfig = field(default_factory=JwtConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    keys: KeysConfig = field(default_factory=KeysConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    jobs: JobsConfig = field(default_factory=JobsConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    repository: RepositoryConfig = field(default_factory=RepositoryConfig)
    admin: AdminConfig = field(default_factory=AdminConfig)

    def __post_init__(self) -> None:
        for name, value in _leaves(self):
            _check_bounds(name, value)


_MAY_BE_ZERO = frozenset(
    {
        "drain_seconds",
        "limits.max_queue",
        "limits.request_window_seconds",
        "engine.niceness",
        "admission.affinity_ms",
        "admission.job_workers",
        "admission.max_running",
        "admission.ms_per_minute",
        "jwt.leeway_seconds",
        "repository.poll_seconds",
    }
)
_LOG_LEVELS = ("debug", "info", "warning", "error")


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, value


def _check_bounds(name: str, value: Any) -> None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        low_ok = value >= 0 if name in _MAY_BE_ZERO else value > 0
        if not low_ok or not value < 1 << 62:
            raise ConfigError(
                f"cannot use {name} = {value}: need a {'non-negative' if name in _MAY_BE_ZERO else 'positive'} number"
            )
    if name == "log_level" and value not in _LOG_LEVELS:
        raise ConfigError(f"cannot use log_level = {value!r}: need one of {', '.join(_LOG_LEVELS)}")
    is_address = name == "address" or (name in ("tls.mutual_address", "admin.address") and value)
    if is_address and not (value.startswith("unix:") or _is_host_port(value)):
        raise ConfigError(f"cannot use {name} = {value!r}: need host:port such as 127.0.0.1:50051, or unix:path")


def _is_host_port(address: str) -> bool:
    host, colon, port = address.rpartition(":")
    return bool(host and colon) and port.isascii() and port.isdigit() and int(port) < 65536


def load_config(path: Path | str | None = None, environment: Mapping[str, str] | None = None) -> ServerConfig:
    """The configuration from a file (none: the defaults) and the environment (none: this process's).

    Raises ConfigError naming the file, the key, what was got and what is needed.
    """
    record: dict[str, Any] = {}
    base = Path()
    if path is not None:
        try:
            record = tomllib.loads(Path(path).read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read the configuration {path}: {error}; need a TOML file") from error
        base = Path(path).resolve().parent
    overrides = _from_environment(os.environ if environment is None else environment)
    from_file = from_mapping(ServerConfig, record, base=base, source=str(path))
    return _merge(from_file, overrides)


def from_mapping(kind: type[Any], record: Mapping[str, Any], *, base: Path, source: str, prefix: str = "") -> Any:
    """Build the configuration dataclass `kind` from a parsed TOML table, refusing unknown keys and wrong types."""
    hints = get_type_hints(kind)
    unknown = sorted(set(record) - set(hints))
    if unknown:
        raise ConfigError(
            f"cannot use {source}: unknown key {prefix}{unknown[0]}; need one of {', '.join(sorted(hints))}"
        )
    values: dict[str, Any] = {}
    for key, value in record.items():
        if is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"cannot use {source}: {prefix}{key} is {value!r}, need a table [{prefix}{key}]")
            values[key] = from_mapping(hints[key], value, base=base, source=source, prefix=f"{prefix}{key}.")
        else:
            values[key] = _typed(hints[key], value, f"{prefix}{key}", base, source)
    return kind(**values)


def _typed(hint: Any, value: Any, name: str, base: Path, source: str) -> Any:
    wanted = _needed(hint)
    if wanted is Path and isinstance(value, str) and value:
        return base / Path(value).expanduser()
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if get_origin(wanted) is tuple and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if get_origin(wanted) is Mapping and isinstance(value, Mapping):
        return _tables(get_args(wanted)[1], value, name, base, source)
    if wanted is not Path and type(value) is wanted:
        return value
    need = {Path: "a path", float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    several = "tables" if get_origin(wanted) is Mapping else "a list of texts"
    raise ConfigError(f"cannot use {source}: {name} is {value!r}, need {need.get(wanted, several)}")


def _needed(hint: Any) -> Any:
    """The type that a value must have where it is given; "or none" only means that it may be left out."""
    if isinstance(hint, UnionType):
        return next(kind for kind in get_args(hint) if kind is not NoneType)
    return hint


def _tables(kind: type[Any], record: Mapping[str, Any], name: str, base: Path, source: str) -> dict[str, Any]:
    """Tables [name.<anything>] of one kind, by the name that the operator chose."""
    for key, value in record.items():
        if not isinstance(value, Mapping):
            raise ConfigError(f"cannot use {source}: {name}.{key} is {value!r}, need a table [{name}.{key}]")
    return {
        key: from_mapping(kind, value, base=base, source=source, prefix=f"{name}.{key}.")
        for key, value in record.items()
    }


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Overrides by dotted name. Texts are read as the field's type says."""
    names = {ENVIRONMENT_PREFIX + name.replace(".", "_").upper(): name for name, _ in _leaves(ServerConfig())}
    overrides: dict[str, Any] = {}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        if variable not in names:
            raise ConfigError(
                f"cannot use the environment variable {variable}: no such setting; need one of {', '.join(sorted(names))}"
            )
        name = names[variable]
        overrides[name] = _typed(
            _hint(name), _read_text(_hint(name), text), name, Path(), f"the environment ({variable})"
        )
    return overrides


def _hint(name: str) -> Any:
    section, _, key = name.rpartition(".")
    kind = get_type_hints(ServerConfig)[section] if section else ServerConfig
    return get_type_hints(kind)[key]


def _read_text(hint: Any, text: str) -> Any:
    """A number, truth value or comma-separated list out of a text; the text itself where it is none, for _typed to refuse."""
    if hint is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            return text
    if get_origin(_needed(hint)) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _merge(config: ServerConfig, overrides: Mapping[str, Any]) -> ServerConfig:
    for name, value in overrides.items():
        section, _, key = name.rpartition(".")
        if section:
            config = replace(config, **{section: replace(getattr(config, section), **{key: value})})
        else:
            config = replace(config, **{key: value})
    return config
