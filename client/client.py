"""Client: the whole life of an encrypted prediction, from the server's spec to a label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy.typing as npt

from he_runtime.client_spec import ClientSpec
from he_runtime.errors import Reason
from he_runtime.wire import WIRE_VERSION
from protos.native import CostEstimate, ModelSummary, ServerInfo

from .channel import Endpoint, open_channel
from .credentials import Token, TokenSource
from .errors import ServerError
from .exchange import check_input
from .keystore import KeyStore, ServerIdentity
from .limits import Limits
from .prediction import Prediction
from .prepare import Prepared, fetch_spec, make_ready
from .release import RELEASES, STATISTICAL_BITS, Release, require_precision
from .run import run, run_for_release
from .transport import Transport
from .trust import require_printable
from .upload import Progress

__all__ = ["Client"]

# What the server forgot or replaced since it was asked: worth preparing again, once.
_STALE_KEYS = frozenset({Reason.KEY_SET_UNKNOWN})
_STALE_SPEC = frozenset({Reason.MODEL_UNKNOWN, Reason.VERSION_UNKNOWN})


class Client:
    """A connection to one server; make it with `connect`. Not to be shared between threads."""

    def __init__(
        self,
        transport: Transport,
        identity: ServerIdentity,
        keystore: KeyStore,
        limits: Limits,
        server: ServerInfo,
    ) -> None:
        self.keystore = keystore
        self.limits = limits
        self.server = server
        self._transport = transport
        self._identity = identity
        self._specs: dict[tuple[str, str], tuple[ClientSpec, str]] = {}  # with the digest of the server's bytes
        self._prepared: dict[tuple[str, str], Prepared] = {}

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        certificate: str | Path | None = None,
        client_certificate: tuple[str | Path, str | Path] | None = None,
        token: Token | None = None,
        home: str | Path | None = None,
        limits: Limits | None = None,
        timeout: float = 300.0,
        allow_insecure_channel: bool = False,
    ) -> Client:
        """Connect to "host:port" and ask the server who it is.

        `certificate` is a PEM file (a root to trust, or the server's own certificate to pin) or a fingerprint
        "sha256:...". Without it loopback is reached in the clear, and other hosts over TLS with the system's roots,
        unless `allow_insecure_channel`.

        To say who is calling, `client_certificate` names two PEM files, the client's certificate chain and its private
        key; `token` is a bearer token, a Path of a file that holds one, or a callable that makes one, which is asked
        again before that one expires or when the server refuses it. A token goes over TLS or to loopback only.

        Secrets lie under `home`, by default SECATEUR_HOME or the user's data
        directory. `timeout` is the longest that one call may take, in seconds.

        Raises ServerUnreachable, ServerUntrusted when the certificate is not the pinned one, NotAuthenticated or
        NotPermitted when the server refuses this caller, CredentialError when the caller's credential cannot be used.
        """
        limits = limits or Limits()
        endpoint = Endpoint.parse(address)
        channel, identity = open_channel(
            endpoint,
            certificate,
            limits,
            allow_insecure=allow_insecure_channel,
            timeout_seconds=min(timeout, 30.0),
            client_certificate=client_certificate,
            with_token=token is not None,
        )
        source = TokenSource(token) if token is not None else None
        transport = Transport(channel, str(endpoint), timeout_seconds=timeout, token=source)
        try:
            server = transport.list_models().server
            require_printable((server.build,), limits)
            _check_wire_version(server)
        except BaseException:
            transport.close()
            raise
        return cls(transport, identity, KeyStore(home), limits, server)

    def close(self) -> None:
        """Close the connection and drop the secrets from memory; they stay on disk."""
        self._prepared.clear()
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._identity.address!r})"

    def models(self) -> list[ModelSummary]:
        """The models that the server offers."""
        models = self._transport.list_models().models
        require_printable((text for m in models for text in (m.name, m.default_version, *m.versions)), self.limits)
        return list(models)

    def spec(self, model: str, version: str | None = None) -> ClientSpec:
        """The server's client spec of a model, after every check of `trust`."""
        return fetch_spec(self._transport, model, version or "", self.limits)[0]

    def estimate(self, model: str, version: str | None = None) -> CostEstimate:
        """What the server says that one prediction costs."""
        found = self._transport.estimate(model, version or "")
        names = (found.model, found.version, found.table_name, found.confidence, *found.counts, *found.dense_counts)
        require_printable(names, self.limits)
        return found

    def prepare(self, model: str, version: str | None = None, progress: Progress | None = None) -> Prepared:
        """Fetch and check the spec; make and upload the keys unless the server has them. Later calls are free.

        `progress(done, total)` counts bytes of the key upload.
        """
        name = (model, version or "")
        known = self._prepared.get(name)
        if known is not None:
            return known
        spec, digest = self._fetched(model, version)
        entry = self.keystore.entry(self._identity, spec.params)
        ready = make_ready(self._transport, entry, spec, digest, self.server, progress)
        self._prepared[name] = replace(ready, uploaded_bytes=0)
        return ready

    def predict(
        self,
        model: str,
        x: npt.ArrayLike,
        *,
        version: str | None = None,
        strict: bool = False,
        progress: Progress | None = None,
    ) -> Prediction:
        """Encrypt `x` (*input shape), or a batch (B, *input shape), have it evaluated, decrypt the answer.

        `x` is raw: it is normalized here as the spec says. Values outside the calibrated range give a RangeWarning, or
        with `strict` an InputError. When the server has evicted the keys or replaced the default version meanwhile, the
        model is prepared and run again, once.

        Raises InputError, ServerError (ServerUnreachable), ServerUntrusted, CiphertextMismatch and WireError for a bad
        reply, ParameterError for insecure parameters, KeyStoreError.
        """
        try:
            return self._attempt(model, x, version, strict, progress)
        except ServerError as error:
            if error.reason not in _STALE_KEYS | _STALE_SPEC or not self._forget(model, version, error.reason):
                raise
        return self._attempt(model, x, version, strict, progress)

    def predict_for_release(
        self,
        model: str,
        x: npt.ArrayLike,
        bits: int,
        *,
        version: str | None = None,
        releases: int = RELEASES,
        statistical_bits: int = STATISTICAL_BITS,
    ) -> Release:
        """Like `predict`, but what comes out may be shown to others: flooded with noise, rounded, counted (release.py).

        Every sample uses one of the `releases` of the key, for good. `bits` after the binary point are kept. Inputs have to
        be within the calibrated range, for which the error was predicted.

        Raises PrecisionImpossible, naming the best, where the noise is wider than `bits` allow; ReleaseBudgetSpent when
        none is left, which only new keys mend; ReleaseRefused for another budget than the key began with; and what
        `predict` raises.
        """
        spec, _ = self._fetched(model, version)
        require_precision(spec, bits, releases, statistical_bits)
        samples, _ = check_input(spec, x, strict=True)
        ready = self.prepare(model, version)
        most = self._most_request_bytes()
        return run_for_release(self._transport, ready, samples, self.limits, most, bits, releases, statistical_bits)

    def _attempt(
        self, model: str, x: npt.ArrayLike, version: str | None, strict: bool, progress: Progress | None
    ) -> Prediction:
        spec, _ = self._fetched(model, version)
        samples, single = check_input(spec, x, strict)  # before keys are made: a wrong shape costs nothing
        ready = self.prepare(model, version, progress)
        return run(self._transport, ready, samples, single, self.limits, self._most_request_bytes())

    def _most_request_bytes(self) -> int:
        return min(self.limits.max_message_bytes, self.server.max_message_bytes or self.limits.max_message_bytes)

    def _fetched(self, model: str, version: str | None) -> tuple[ClientSpec, str]:
        name = (model, version or "")
        if name not in self._specs:
            self._specs[name] = fetch_spec(self._transport, model, version or "", self.limits)
        return self._specs[name]

    def _forget(self, model: str, version: str | None, reason: Reason) -> bool:
        """Drop what turned out to be stale; False when nothing was known, so that trying again would change nothing."""
        name = (model, version or "")
        spec, ready = self._specs.pop(name, None), self._prepared.pop(name, None)
        if ready is not None and reason in _STALE_KEYS:
            ready.entry.forget(ready.spec.keys, ready.key_set_id)
        return spec is not None


def _check_wire_version(server: ServerInfo) -> None:
    if server.wire_version != WIRE_VERSION:
        raise ServerError(
            f"cannot talk to this server: got wire version {server.wire_version}, need {WIRE_VERSION}; try client and "
            "server of one release",
            Reason.VERSION_UNKNOWN,
        )
