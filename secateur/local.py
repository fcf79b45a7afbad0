"""Both sides of an encrypted inference in this process, without a network: what the benchmarks and the doctor time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from he_runtime import Plan
    from he_runtime.ring import CiphertextData, KeyRecord

    Floats = npt.NDArray[np.float64]

__all__ = ["Local"]


class Local:
    """A plan on a back end, with a secret key and evaluation keys of its own.

    `encode_s` is how long the weights took to encode, in seconds; `executor` has the counters of the last run.
    """

    def __init__(self, planned: Plan, backend: str | None = None) -> None:
        from he_runtime import Executor

        self._spec = planned.client_spec()
        start = time.perf_counter()
        self.executor = Executor(planned, backend)
        self.encode_s = time.perf_counter() - start
        self.fresh_keys()

    def fresh_keys(self) -> None:
        """A new secret key and evaluation keys; what was encrypted before is lost."""
        from he_runtime.backends.tenseal_secret import SecretKey
        from he_runtime.ring import EvaluationKeys

        planned = self.executor.plan
        self._secret = SecretKey.generate(planned.params)
        records = {record.element: record for record in self.key_records()}
        self._keys = self.executor.load_keys(EvaluationKeys(planned.params.digest, records))

    def key_records(self) -> Iterator[KeyRecord]:
        """The evaluation keys that the plan names, made anew, in its order."""
        return self._secret.make_keys(self.executor.plan.keys)

    def encrypt(self, sample: Floats) -> list[CiphertextData]:
        """A normalized sample (*input shape)."""
        return self.encrypt_batch(sample[None])

    def encrypt_batch(self, samples: Floats) -> list[CiphertextData]:
        """As many normalized samples (B, *input shape) as the plan's batch, or fewer."""
        spec = self._spec.input
        return [self._secret.encrypt(slots, spec.level, spec.scale) for slots in spec.pack(samples)]

    def evaluate(self, inputs: list[CiphertextData]) -> list[CiphertextData]:
        """What a server does: encrypted input to encrypted output."""
        return self.executor.run(inputs, self._keys)

    def timed(self, sample: Floats) -> tuple[float, Floats]:
        """Seconds from encrypted input to encrypted output of a normalized sample, and the outputs (flat)."""
        encrypted = self.encrypt(sample)
        start = time.perf_counter()
        answer = self.evaluate(encrypted)
        seconds = time.perf_counter() - start
        return seconds, self.decrypt(answer).ravel()

    def decrypt(self, outputs: list[CiphertextData]) -> Floats:
        """The output tensor (*output shape)."""
        answer: Floats = self.decrypt_batch(outputs, 1)[0]
        return answer

    def decrypt_batch(self, outputs: list[CiphertextData], count: int) -> Floats:
        """The output tensors (count, *output shape) of the first `count` samples."""
        import numpy as np

        slots = np.stack([self._secret.decrypt(ciphertext) for ciphertext in outputs])
        return self._spec.output.unpack(slots, count)
