"""A network on its way through the steps of a recipe, with all that a step needs: data, teacher, training, reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel, InputSpec

from .folding.folding import fold
from .graph import Graph
from .masks import Mask
from .quantize import quantize_model
from .quantizers import Quantizer
from .settings import Training
from .structures import Layer, layers_of
from .train import Hooks, accuracy, fit, predict
from .trainable import TrainableGraph

__all__ = ["Float32", "Stage"]

Float32 = npt.NDArray[np.float32]


@dataclass
class Stage:
    """What every step of one compression shares. It is a `cores.Session`.

    `net` is the network as it stands and `teacher` gives soft labels; inputs are normalized, (n, *shape). Steps before
    folding see batch norms and activations; `fold` ends that. `quantizers` says which arrays leave as integers.
    """

    name: str
    net: TrainableGraph
    teacher: nn.Module
    input_spec: InputSpec
    labels: tuple[str, ...]
    x: Float32
    y: npt.NDArray[np.int64]
    x_test: Float32
    y_test: npt.NDArray[np.int64]
    seed: int = 0
    quiet: bool = True
    folded: bool = False
    penalty: Callable[[], Tensor] | None = None  # keeps polynomials within their ranges, until folding
    quantizers: dict[str, Quantizer] = field(default_factory=dict)
    settled: str = ""  # the method that left weights on levels which no quantizer keeps them on
    logits: dict[str, npt.NDArray[Any]] = field(default_factory=dict)  # on the test set, by what was done last
    steps: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0  # wall clock so far, of all runs that an interrupted compression took
    title: str = ""  # of the step at hand, which its training runs carry
    _runs: int = 0
    _epochs: int = 0
    _report: dict[str, Any] = field(default_factory=dict)

    def fit(self, training: Training, label: str, hooks: Hooks | None = None) -> None:
        """One run of the optimiser, with distillation from the teacher. Runs of one step draw different batches."""
        seed, self._runs = self.seed + self._runs, self._runs + 1
        self._epochs += training.epochs
        fit(
            self.net,
            self.x,
            self.y,
            training,
            seed=seed,
            teacher=self.teacher,
            hooks=hooks,
            label=label if not self.title else self.title if self.title.endswith(label) else f"{self.title}, {label}",
            quiet=self.quiet,
        )

    def measure(self, what: str) -> None:
        """Keep the network's test logits under a name; a second time, under the name with a number."""
        number = sum(name == what or name.startswith(f"{what} ") for name in self.logits)
        self.logits[f"{what} {number + 1}" if number else what] = predict(self.net, self.x_test)

    def accuracy(self) -> float:
        """On the test set, as the network stands."""
        return accuracy(predict(self.net, self.x_test), self.y_test)

    def begin_step(self, title: str = "") -> None:
        self._runs, self._epochs, self._report, self.title = 0, 0, {}, title

    def report(self, **facts: Any) -> None:
        """Plain values about the step at hand, for the model's metadata."""
        self._report.update(facts)

    def end_step(self, about: dict[str, Any]) -> None:
        """Add the step to the metadata, with the epochs that it trained in all."""
        self.steps.append({**about, "epochs": self._epochs, **self._report})

    def report_mask(self, mask: Mask) -> None:
        """What a pruning kept. ModelError where a layer has no weight left."""
        if mask.collapsed():
            raise ModelError(
                f"cannot prune so far: no weight is left in {mask.collapsed()}; try a higher density or a larger minimum"
            )
        self.report(**mask.report(self.net.graph.positions()))

    def layers(self) -> dict[str, Layer]:
        """Array name -> the layer that it is the weight of, as structures see it."""
        return layers_of(self.net.graph)

    def need_unfolded(self, method: str) -> None:
        """ModelError where an earlier step folded the network that this one changes before folding, or left it on levels."""
        self._need_unsettled(method)
        if self.folded:
            raise self._too_late(method, "need it before the network is folded; try it earlier")

    def need_unquantized(self, method: str) -> None:
        """ModelError where earlier steps have put every layer on levels, so that this one finds nothing to quantize."""
        self._need_unsettled(method)
        if self.quantizers and set(self.net.weight_keys()) <= set(self.quantizers):
            raise self._too_late(
                method, f"all layers are quantized already, need one that is not; try {method!r} in place of that step"
            )

    def _need_unsettled(self, method: str) -> None:
        if self.settled:
            raise self._too_late(
                method, f"it would move weights off the levels of {self.settled!r}, need it before them; try it earlier"
            )

    def _too_late(self, method: str, why: str) -> ModelError:
        return ModelError(f"cannot apply {method!r} after {[step['method'] for step in self.steps]}: {why}")

    def replace_net(self, net: TrainableGraph) -> None:
        """Go on with another network: arrays may have other names and shapes."""
        self.net = net

    def fold(self) -> None:
        """Absorb batch norms and complete squares; zeros stay zeros. From here on the exported network is trained."""
        if self.folded:
            return
        masked, self.penalty = bool(self.net.masks), None
        graph = fold(self.net.to_graph())
        self.teacher, self.net, self.folded = TrainableGraph(graph), TrainableGraph(graph), True
        if masked:
            keys = self.net.weight_keys()
            self.net.masks = {key: torch.from_numpy(np.asarray(graph.arrays[key]) != 0) for key in keys}

    def graph(self) -> Graph:
        """The network as it stands, trained values and masks included."""
        return self.net.to_graph()

    def to_model(self) -> CompressedModel:
        """The folded network, quantized arrays as integers with their steps."""
        self.fold()
        return self.snapshot()

    def snapshot(self) -> CompressedModel:
        """What `to_model` would give now, with this network left as it stands; ModelError while it has activations."""
        graph = self.graph() if self.folded else fold(self.graph())
        return quantize_model(graph.to_model(self.name, self.input_spec, self.labels), self.quantizers)
