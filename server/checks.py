"""`serve --check`: find every problem of a configuration without serving."""

from __future__ import annotations

import importlib.util
import os
import socket
import tempfile
from pathlib import Path

from he_runtime.errors import SecateurError

from .config import ServerConfig
from .engine.runtime import load_runtime
from .errors import ConfigError
from .models import checksums
from .models.repository import Repository
from .observe import observing
from .scale.backends import problems as workers_problems
from .state.layout import read_version

__all__ = ["check"]


def check(config: ServerConfig) -> list[str]:
    """Everything that would keep this configuration from serving, a sentence each; empty when it is fine."""
    problems: list[str] = []
    for probe in (
        _check_backend,
        _check_models,
        _check_state,
        _check_identity,
        _check_addresses,
        _check_limits,
        _check_cost_table,
        observing.problems,
    ):
        try:
            problems += probe(config)
        except SecateurError as error:
            problems.append(error.message)
    return problems


def _check_backend(config: ServerConfig) -> list[str]:
    return workers_problems(config.engine) + load_runtime(config.engine.runtime).problems(config.engine.backend)


def _check_models(config: ServerConfig) -> list[str]:
    def verified(directory: Path) -> Path:
        digests = checksums.file_digests(directory)
        checksums.checked(directory, digests, required=config.repository.require_checksums)
        return directory

    repository = Repository.scan(config.models, load_runtime(config.engine.runtime), copy=verified)
    problems = [f"{b.name} version {b.version}: {b.error.message}" for b in repository.broken]
    if not repository.summaries():
        problems.append(f"models = {config.models}: no model can be served from here; try `secateur compress`")
    return problems


def _check_state(config: ServerConfig) -> list[str]:
    read_version(config.state)
    place = config.state
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            return []
    except OSError as error:
        raise ConfigError(f"cannot use state = {config.state}: {error.strerror or error}") from error


def _check_identity(config: ServerConfig) -> list[str]:
    if importlib.util.find_spec("cryptography") is None and (config.tls.enabled or config.identity.reads_tokens):
        raise ConfigError("cannot use TLS or tokens: cryptography is not installed; try pip install 'secateur[server]'")
    from .identity.problems import identity_problems, unreadable_files

    return identity_problems(config) or unreadable_files(config)


def _check_addresses(config: ServerConfig) -> list[str]:
    from .admin.port import admin_problems

    problems = list(admin_problems(config))
    addresses = {
        "address": config.address,
        "tls.mutual_address": config.tls.mutual_address,
        "admin.address": config.admin.address,
    }
    for name, address in addresses.items():
        if address:
            problems += _unusable(name, address)
    return problems


def _unusable(name: str, address: str) -> list[str]:
    """Why nobody could listen there now."""
    if address.startswith("unix:"):
        parent = Path(address.removeprefix("unix:")).absolute().parent
        return [] if os.access(parent, os.W_OK) else [f"{name} = {address}: cannot write to {parent}"]
    host, _, port = address.rpartition(":")
    try:
        family, kind, proto, _, where = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        return [f"cannot use {name} = {address}: {error.strerror or error}; try another port"]
    return []


def _check_limits(config: ServerConfig) -> list[str]:
    problems = []
    limits, keys = config.limits, config.keys
    if limits.max_chunk_bytes >= limits.max_message_bytes:
        problems.append(
            "limits.max_chunk_bytes must be below limits.max_message_bytes, which holds a chunk and its frame"
        )
    if limits.max_upload_bytes > min(keys.budget_bytes, keys.tenant_budget_bytes, keys.upload_budget_bytes):
        problems.append(
            "limits.max_upload_bytes must not exceed keys.budget_bytes, keys.tenant_budget_bytes or keys.upload_budget_bytes"
        )
    for setting, module, extra in ((keys.database, "psycopg", "postgres"), (keys.bucket, "obstore", "s3")):
        if setting and importlib.util.find_spec(module) is None:
            problems.append(f"keys need {module}, which is not installed; try pip install 'secateur[{extra}]'")
    return problems


def _check_cost_table(config: ServerConfig) -> list[str]:
    table = config.engine.cost_table
    if table is not None and not table.is_file():
        return [f"cannot use engine.cost_table = {table}: no such file; try `secateur calibrate`"]
    return []
