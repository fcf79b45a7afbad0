"""Whole channels removed by the Hessian's trace: EHAP (Chong et al., arXiv 2306.07030), on model_prep.channels.

The paper's, and HAP's before it (arXiv 2101.08940): a channel costs trace / p * |w|^2, random signs probe all layers at
once, half precision does for it, one ranking covers all layers but the last, and what goes is cut out for good. In its
sequence eight-bit training follows, which here is the step "integers".

The project's own: quadratics are in place and batch norms folded when the trace is taken, so it is that of the network
which will run; the rule that stops probing; distillation in fine-tuning; and how much of each layer stays. HAP's limit of
0.95 is made for wide layers. On digits-cnn it takes nearly all from the second of two layers: less accurate over 25 splits
than the limit below, and the first layer, whose images are the larger ones, is where ciphertext products are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from he_runtime.errors import ModelError

from ..channels.hessian import Probing, Traces, channel_sensitivity, channel_traces
from ..channels.selection import select_channels
from ..channels.slimming import kept_weights, removable, resolve, slim_net
from ..cores.session import core_hooks, masks_of
from ..graph import weight_keys
from ..masks import Bools, Mask
from ..settings import Training, require
from ..stage import Stage
from .method import Card, Method, register

__all__ = ["TracePruning"]

_EVENNESS = 0.8


@register(
    Card(
        "trace",
        "pruning",
        "channels, physically removed",
        "ciphertext products: one for each channel left and position; products in column packing, by both ends of a kernel",
        "Chong, Gupta, Chen, Resource Efficient Neural Networks Using Hessian Based Pruning, arXiv 2306.07030",
    )
)
@dataclass(frozen=True)
class TracePruning(Method):
    """The share `ratio` of all channels that can go at all goes, and at most the part `limit` of each layer's.

    A limit of 0 stands for 1 - 0.8 (1 - ratio): every layer keeps at least 0.8 of what an equal share would leave it.
    The trace is that of the loss on `samples` training images, drawn once. Probing stops when the trace has settled to
    `tolerance` or after `probes` probes. `precision` is one of hessian.PRECISIONS.
    """

    ratio: float = 0.5
    limit: float = 0.0
    samples: int = 512
    precision: str = "fp32"
    probes: int = 300
    tolerance: float = 1e-3
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        require(0 <= self.ratio < 1 and 0 <= self.limit <= 1, self, "ratio in [0, 1) and limit in [0, 1]")
        require(self.samples > 0, self, "samples > 0")
        self._probing(0)

    def apply(self, stage: Stage) -> None:
        stage.need_unfolded("trace")
        graph = stage.net.graph
        may_go = {key: flags for key, flags in removable(graph).items() if flags.any()}
        if not may_go:
            raise ModelError(
                "cannot remove channels: got none that could go, as all belong to the network's input or output; try a "
                "network with a hidden layer"
            )
        limit = self.limit or 1 - _EVENNESS * (1 - self.ratio)
        choose = partial(select_channels, ratio=self.ratio, limit=limit, removable=may_go)
        choose({key: np.zeros(len(flags)) for key, flags in may_go.items()})  # refuses before the probing, not after
        traces = self._traces(stage)
        scores = channel_sensitivity(stage.net, {key: traces.values[key] for key in may_go})
        keep = resolve(graph, choose(scores))
        left, before = kept_weights(graph, keep), masks_of(stage.net)
        left = {key: flags & before[key] if key in before else flags for key, flags in left.items()}
        stage.report_mask(Mask(left, "channel", {"ratio": self.ratio, "limit": limit}))
        self._report(stage, {key: keep[key] for key in may_go}, may_go, traces)
        stage.replace_net(slim_net(stage.net, keep))
        stage.fit(self.training, "trace", core_hooks(stage.net, [stage.penalty]))

    def _probing(self, seed: int) -> Probing:
        return Probing(self.precision, self.probes, self.tolerance, seed=seed)

    def _traces(self, stage: Stage) -> Traces:
        batch = np.sort(np.random.default_rng(stage.seed).permutation(len(stage.x))[: self.samples])
        return channel_traces(stage.net, stage.x[batch], stage.y[batch], self._probing(stage.seed))

    def _report(self, stage: Stage, keep: dict[str, Bools], may_go: dict[str, Bools], traces: Traces) -> None:
        """What is left of each layer, and of the ratio: sums and groups may have held channels back."""
        names = weight_keys(stage.net.graph)
        going, could = (
            sum(int(flags.sum()) for flags in group) for group in ([~k for k in keep.values()], may_go.values())
        )
        stage.report(
            channels={names[key]: [int(kept.sum()), len(kept)] for key, kept in keep.items()},
            removed=going / could,
            precision=self.precision,
            probes=traces.probes,
            settled=traces.settled,
        )
