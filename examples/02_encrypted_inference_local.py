"""Both sides of an encrypted inference in one process, without a network: who holds what, step by step."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from he_runtime import Executor, compile, run_clear
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.client_spec import ClientSpec
from he_runtime.ring import EvaluationKeys
from model_prep import export


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


def main() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    module = nn.Sequential(nn.Linear(16, 32), Square(), nn.Linear(32, 4))
    inputs = rng.uniform(-1, 1, size=(200, 16))

    # The operator: export the module with calibration data, plan it, encode the weights once.
    model = export(module, torch.zeros(2, 16), name="tiny", calibration=inputs)
    plan = compile(model)
    executor = Executor(plan, "tenseal")
    spec_bytes = plan.client_spec().to_json()

    # The client: parameters, keys to make and slot layouts come as data. The secret key never leaves its hands.
    spec = ClientSpec.parse(spec_bytes)
    secret = SecretKey.generate(spec.params)
    public = EvaluationKeys(spec.params.digest, {record.element: record for record in secret.make_keys(spec.keys)})
    sample = inputs[0]
    encrypted = [secret.encrypt(slots, spec.input.level, spec.input.scale) for slots in spec.input.pack(sample[None])]

    # The operator again: ciphertexts and evaluation keys in, ciphertexts out.
    answer = executor.run(encrypted, executor.load_keys(public))

    # The client decrypts.
    logits = spec.output.unpack(np.stack([secret.decrypt(ciphertext) for ciphertext in answer]))[0]
    clear = run_clear(plan, sample[None])[0]
    print("encrypted", np.round(logits, 4))
    print("clear    ", np.round(clear, 4))
    print("stated error bound", spec.error_bound)
    assert np.abs(logits - clear).max() <= spec.error_bound
    assert executor.counters == plan.counts  # what ran is what was planned, operation by operation


if __name__ == "__main__":
    main()
