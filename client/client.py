"""Client: the whole life of an encrypted prediction, from the server's spec to a label. AsyncClient is its asyncio twin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy.typing as npt

from he_runtime.client_spec import ClientSpec
from protos.native import CostEstimate, ModelSummary, ServerInfo

from . import job_core
from .channel import Endpoint, find_route
from .core import IN_FLIGHT, Core, Wish, greet
from .credentials import Token, TokenSource
from .jobs import Job
from .keyring import StoredKeys, delete_keys, list_keys
from .keystore import KeyStore, ServerIdentity
from .limits import Limits
from .port import drive
from .prediction import Prediction
from .prepare import Prepared
from .release import RELEASES, STATISTICAL_BITS, Release
from .retry import RETRIES
from .transport import Transport
from .upload import Progress

__all__ = ["Client"]


class Client:
    """A connection to one server; make it with `connect`. Not to be shared between threads.

    What a server may do better later is tried again, `retries` times, with waits that grow and are drawn by chance, for as
    long as the server asks and the timeout allows: one that is busy, draining, restarting, or lost a worker. A retried
    request keeps its id, by which the server evaluates it once. Errors that an equal request would get again are raised at
    once. Calls take `timeout` (seconds for the whole call) and `retries` of their own. Ctrl-C cancels what is under way,
    at the server too.
    """

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
        self._core = Core(transport, identity, keystore, limits, server)

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
        retries: int = RETRIES,
        allow_insecure_channel: bool = False,
    ) -> Client:
        """Connect to "host:port" and ask the server who it is.

        `certificate` is a PEM file (a root to trust, or the server's own certificate to pin) or a fingerprint
        "sha256:...". Without it loopback is reached in the clear, and other hosts over TLS with the system's roots,
        unless `allow_insecure_channel`.

        To say who is calling, `client_certificate` names two PEM files, the client's certificate chain and its private
        key; `token` is a bearer token, a Path of a file that holds one, or a callable that makes one, which is asked
        again before that one expires or when the server refuses it. A token goes over TLS or to loopback only.

        Secrets lie under `home`, by default SECATEUR_HOME or the user's data directory. `timeout` is the longest that one
        request may take with its retries, in seconds, and `retries` how often it is tried again.

        Raises ServerUnreachable, ServerUntrusted when the certificate is not the pinned one, NotAuthenticated or
        NotPermitted when the server refuses this caller, CredentialError when the caller's credential cannot be used.
        """
        limits, endpoint = limits or Limits(), Endpoint.parse(address)
        route = find_route(
            endpoint,
            certificate,
            limits,
            allow_insecure=allow_insecure_channel,
            timeout_seconds=min(timeout, 30.0),
            client_certificate=client_certificate,
            with_token=token is not None,
        )
        source = TokenSource(token) if token is not None else None
        transport = Transport(route.open(), str(endpoint), timeout_seconds=timeout, token=source, retries=retries)
        try:
            server = drive(greet(transport, limits, transport.budget))
        except BaseException:
            transport.close()
            raise
        return cls(transport, route.identity, KeyStore(home), limits, server)

    def close(self) -> None:
        """Close the connection and drop the secrets from memory; they stay on disk."""
        self._core.drop_secrets()
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._core.identity.address!r})"

    def models(self) -> list[ModelSummary]:
        """The models that the server offers."""
        return drive(self._core.models(self._transport.budget))

    def spec(self, model: str, version: str | None = None) -> ClientSpec:
        """The server's client spec of a model, after every check of `trust`."""
        return drive(self._core.spec(model, version or "", self._transport.budget))[0]

    def estimate(self, model: str, version: str | None = None) -> CostEstimate:
        """What the server says that one prediction costs."""
        return drive(self._core.estimate(model, version or "", self._transport.budget))

    def prepare(
        self,
        model: str,
        version: str | None = None,
        progress: Progress | None = None,
        *,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> Prepared:
        """Fetch and check the spec; make and upload the keys unless the server has them. Later calls are free.

        `progress(done, total)` counts bytes of the key upload.
        """
        return drive(self._core.prepare(self._wish(model, version, progress, timeout, retries)))

    def predict(
        self,
        model: str,
        x: npt.ArrayLike,
        *,
        version: str | None = None,
        strict: bool = False,
        progress: Progress | None = None,
        items: Callable[[int, int], None] | None = None,
        in_flight: int = IN_FLIGHT,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> Prediction:
        """Encrypt `x` (*input shape), or a batch (B, *input shape), have it evaluated, decrypt the answer.

        `x` is raw: it is normalized here as the spec says. Values outside the calibrated range give a RangeWarning, or
        with `strict` an InputError. A batch larger than a ciphertext holds is split into requests, at most `in_flight` of
        them at once; answers are in the batch's order. `progress(done, total)` counts bytes of the key upload,
        `items(done, total)` samples answered. When the server has evicted the keys or replaced the default version
        meanwhile, the model is prepared again, once, and what has no answer yet is run again.

        Raises InputError, ServerError (ServerUnreachable, ServerBusy, DeadlineExceeded; BatchIncomplete where part of a
        batch is answered, which says what and holds it), ServerUntrusted, CiphertextMismatch and WireError for a bad
        reply, ParameterError for insecure parameters, KeyStoreError.
        """
        return drive(
            self._core.predict(self._wish(model, version, progress, timeout, retries), x, strict, in_flight, items)
        )

    def predict_for_release(
        self,
        model: str,
        x: npt.ArrayLike,
        bits: int,
        *,
        version: str | None = None,
        releases: int = RELEASES,
        statistical_bits: int = STATISTICAL_BITS,
        in_flight: int = IN_FLIGHT,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> Release:
        """Like `predict`, but what comes out may be shown to others: flooded with noise, rounded, counted (release.py).

        Every sample uses one of the `releases` of the key, for good. `bits` after the binary point are kept. Inputs have to
        be within the calibrated range, for which the error was predicted.

        Raises PrecisionImpossible, naming the best, where the noise is wider than `bits` allow; ReleaseBudgetSpent when
        none is left, which only new keys mend; ReleaseRefused for another budget than the key began with; and what
        `predict` raises.
        """
        wish = self._wish(model, version, None, timeout, retries)
        return drive(self._core.predict_for_release(wish, x, bits, releases, statistical_bits, in_flight))

    def submit(
        self,
        model: str,
        x: npt.ArrayLike,
        *,
        version: str | None = None,
        strict: bool = False,
        progress: Progress | None = None,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> Job:
        """Begin a job: an evaluation that outlives this call, for models that take long. Raises what `predict` raises.

        `x` is one sample, or as many as one ciphertext holds. What its result is decrypted with is stored beside the key.
        """
        wish = self._wish(model, version, progress, timeout, retries)
        return self._job(drive(job_core.submit(self._core, wish, x, strict)))

    def job(self, job: str) -> Job:
        """A job submitted before, also by an earlier run of a program, by its id or name; KeyStoreError for an unknown one."""
        return self._job(job_core.known_job(self._core, job))

    def jobs(self) -> list[Job]:
        """The jobs submitted from this key store to this server, the newest first, until the server forgets them."""
        return [self._job(known) for known in job_core.known_jobs(self._core)]

    def keys(self) -> list[StoredKeys]:
        """Secret keys for this server in the key store, and evaluation keys at the server (keyring.list_keys)."""
        return drive(list_keys(self._transport, self.keystore, self._core.identity, self._transport.budget))

    def delete_keys(self, *names: str) -> list[StoredKeys]:
        """Delete keys at the server and here, and return what they were.

        A name is the beginning (8 digits or more) of a `params_digest`: then the secret key is destroyed with all that
        depends on it, results of its jobs too; or of a `handle`: then that uploaded key set only. KeyStoreError for a name
        that is neither.
        """
        self._core.drop_secrets()
        where = self._transport, self.keystore, self._core.identity, self._transport.budget
        return drive(delete_keys(*where, names))

    def _wish(
        self, model: str, version: str | None, progress: Progress | None, timeout: float | None, retries: int | None
    ) -> Wish:
        return Wish(model, version or "", self._transport.budget.for_call(timeout, retries), progress)

    def _job(self, known: job_core.KnownJob) -> Job:
        return Job(self._core, known, self._transport.budget)
