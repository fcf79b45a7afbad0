"""A network with sites of degree 3 and 7, compressed as usual and run under encryption."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from he_runtime import Executor, compile, run_clear
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.model import InputSpec
from he_runtime.reference import calibrate, forward
from he_runtime.ring import EvaluationKeys
from model_prep.capture.capture import capture
from model_prep.folding.folding import fold
from model_prep.polynomials.approximation import replace_sites
from model_prep.polynomials.ranges import monitor, settle_ranges
from model_prep.trainable import TrainableGraph


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 2, 3), nn.Linear(32, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.conv(x)).flatten(1)
        y: Tensor = self.fc2(F.silu(self.fc1(x)))
        return y


def test_degrees_three_and_seven_run_within_the_predicted_error() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Net().eval()
    x = np.random.default_rng(0).normal(size=(128, 1, 6, 6)).astype(np.float32)
    graph, sites = replace_sites(capture(module, x[:2]), x, {"gelu": 7, "silu": 3})
    with torch.no_grad():
        expected = TrainableGraph(graph, sites).double().eval()(torch.from_numpy(x).double()).numpy()
    x64 = x.astype(np.float64)
    model = settle_ranges(fold(graph).to_model("net", InputSpec("", (1, 6, 6))), x64)
    model = monitor(calibrate(model, x64), x64, x64)
    assert np.abs(forward(model, x64) - expected).max() < 1e-5  # float32 coefficients against float64 ones
    plan = compile(model, max_error=0.05 * float(np.abs(expected).max()))
    assert max(v.level for v in plan.values) - min(v.level for v in plan.values) == 3 + 2

    key, spec = SecretKey.generate(plan.params), plan.client_spec()
    executor = Executor(plan, "tenseal")
    loaded = executor.load_keys(EvaluationKeys(plan.params.digest, {r.element: r for r in key.make_keys(plan.keys)}))
    errors = []
    for sample in x64[:6, None]:
        encrypted = [key.encrypt(slots, spec.input.level, spec.input.scale) for slots in spec.input.pack(sample)]
        result = executor.run(encrypted, loaded)
        assert executor.counters == plan.counts
        decrypted = spec.output.unpack(np.stack([key.decrypt(ct) for ct in result]), 1)
        errors.append(decrypted - forward(model, sample))
        np.testing.assert_allclose(run_clear(plan, sample), forward(model, sample), atol=1e-9)
    assert 0 < float(np.abs(errors).max()) <= 1.5 * plan.error_bound
