"""The one training loop: seeded, cosine-scheduled, with optional distillation, penalty and hooks.

A run that diverges stops at the step where it shows, and the network is put back to the last weights that were seen to
work: a copy is kept from the start of each epoch, and trusted once a step from it had a finite loss and gradient.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from he_runtime.errors import ModelError

from .settings import Training, shown
from .trainable import TrainableGraph

__all__ = ["Diverged", "Hooks", "accuracy", "fit", "predict"]

Float32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
_EVALUATION_BATCH = 1000
_MOMENTUM = 0.9
_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Hooks:
    """What a step of preparation adds to training.

    `before_epoch` gets the part of training done, in [0, 1); `before_step` likewise; `after_step` runs after each
    optimiser step (masks, constraints); `penalty` is added to the loss.
    """

    before_epoch: Callable[[float], None] | None = None
    before_step: Callable[[float], None] | None = None
    after_step: Callable[[], None] | None = None
    penalty: Callable[[], Tensor] | None = None


class Diverged(ModelError):
    """A training run met a value that is not finite; the network holds the weights it had after `good_step` steps.

    `label` names the run, `step` (from 0) the step that failed, `cause` what was not finite.
    """

    def __init__(self, label: str, step: int, good_step: int, cause: str, advice: str) -> None:
        super().__init__(
            f"cannot go on with training {label!r}: {cause} at step {step}, need finite values; the weights are back "
            f"to those of step {good_step}; try {advice}"
        )
        self.label, self.step, self.good_step, self.cause = label, step, good_step, cause


def fit(
    net: nn.Module,
    x: Float32,
    y: Labels,
    training: Training,
    *,
    seed: int,
    teacher: nn.Module | None = None,
    hooks: Hooks | None = None,
    label: str = "training",
    quiet: bool = False,
) -> None:
    """Train `net` in place on normalized inputs `x` (n, *shape) and labels `y` (n,), deterministically for a seed.

    With a teacher the loss is distillation * KL(teacher || net) * T^2 + (1 - distillation) * cross entropy. The
    caller's random state is left as it was.

    Raises ModelError where the shift leaves nothing of an image; Diverged where the loss, the penalty, the gradient or
    the last outputs are not finite, after putting the network (and a TrainableGraph's masks) back to where it last worked.
    """
    _need_images(x, training.shift, label)
    hooks = hooks or Hooks()
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    optimizer, checkpoint = _optimizer(net, training), _Checkpoint(net)
    steps = training.epochs * max(1, len(x) // training.batch_size)
    done, images = 0, inputs[:0]
    with torch.random.fork_rng(devices=[]), _progress(label, training.epochs, quiet) as advance:
        torch.manual_seed(seed)
        for epoch in range(training.epochs):
            net.train()
            if hooks.before_epoch:
                hooks.before_epoch(epoch / training.epochs)
            checkpoint.propose(done)
            for batch in _batches(len(x), training.batch_size):
                _set_learning_rate(optimizer, training.learning_rate, done / steps)
                if hooks.before_step:
                    hooks.before_step(done / steps)
                images = _shifted(inputs[batch], training.shift)
                cause = _step(net, optimizer, images, targets[batch], training, teacher, hooks)
                if cause:
                    raise checkpoint.restore(label, done, cause, training)
                checkpoint.accept()
                done += 1
            advance()
    net.eval()
    if done and not _finite_outputs(net, images):
        raise checkpoint.restore(label, done, "the outputs are not finite", training)


class _Checkpoint:
    """The last weights that worked, and those of this epoch's start, which have still to show that they do."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._good = self._copy(0)
        self._candidate = self._good

    def _copy(self, step: int) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
        masks = dict(self._net.masks) if isinstance(self._net, TrainableGraph) else {}
        return step, copy.deepcopy(self._net.state_dict()), masks

    def propose(self, step: int) -> None:
        self._candidate = self._copy(step)

    def accept(self) -> None:
        self._good = self._candidate

    def restore(self, label: str, step: int, cause: str, training: Training) -> Diverged:
        """Put the network back; returns the error to raise."""
        good_step, state, masks = self._good
        self._net.load_state_dict(state)
        if isinstance(self._net, TrainableGraph):
            self._net.masks = masks
        self._net.eval()
        advice = f"a learning rate below {training.learning_rate:g}, a weaker penalty, or inputs that are finite"
        return Diverged(label, step, good_step, cause, advice)


def _step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    training: Training,
    teacher: nn.Module | None,
    hooks: Hooks,
) -> str:
    """One step of the optimiser; "" or, with the weights left as they were, what was not finite."""
    loss = _loss(net(images), targets, training, teacher, images)
    if not torch.isfinite(loss):
        return "the loss is not finite"
    if hooks.penalty:
        loss = loss + hooks.penalty()
        if not torch.isfinite(loss):
            return "the penalty is not finite"
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    # Quadratics have unbounded slopes: one outlier must not undo the epoch.
    if not torch.isfinite(nn.utils.clip_grad_norm_(net.parameters(), _GRADIENT_NORM)):
        return "the gradient is not finite"
    optimizer.step()
    if hooks.after_step:
        hooks.after_step()
    return ""


@torch.no_grad()
def _finite_outputs(net: nn.Module, images: Tensor) -> bool:
    return bool(torch.isfinite(net(images)).all())


def _loss(logits: Tensor, targets: Tensor, training: Training, teacher: nn.Module | None, images: Tensor) -> Tensor:
    hard = F.cross_entropy(logits, targets, label_smoothing=training.label_smoothing)
    if teacher is None or training.distillation == 0:
        return hard
    t = training.temperature
    with torch.no_grad():
        soft = F.log_softmax(teacher(images) / t, dim=1)
    distance = F.kl_div(F.log_softmax(logits / t, dim=1), soft, reduction="batchmean", log_target=True)
    return training.distillation * t * t * distance + (1 - training.distillation) * hard


def _optimizer(net: nn.Module, training: Training) -> torch.optim.Optimizer:
    parameters = [p for p in net.parameters() if p.requires_grad]
    if training.optimizer == "adam":
        return torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    return torch.optim.SGD(
        parameters, lr=training.learning_rate, momentum=_MOMENTUM, nesterov=True, weight_decay=training.weight_decay
    )


def _set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, progress: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = peak * 0.5 * (1 + float(np.cos(np.pi * progress)))


def _batches(count: int, size: int) -> Iterator[Tensor]:
    """A random order in full batches; the rest of an epoch is dropped, as it would unbalance batch norm."""
    order = torch.randperm(count)
    size = min(size, count)
    for start in range(0, count - size + 1, size):
        yield order[start : start + size]


def _need_images(x: Float32, shift: int, label: str) -> None:
    side = min(x.shape[2:]) if x.ndim == 4 else shift + 1  # only images are shifted
    if shift >= side:
        raise ModelError(
            f"cannot start training {label!r}: got shift = {shown(shift)}, need one below {side}, the shorter side of the "
            f"images; try {side // 4}"
        )


def _shifted(images: Tensor, shift: int) -> Tensor:
    """Each image moved by its own offset of up to `shift` pixels; what comes in at the edge is the image's corner."""
    if shift == 0 or images.ndim != 4:
        return images
    b, _, h, w = images.shape
    padded = F.pad(images, (shift,) * 4, mode="replicate")
    dy, dx = torch.randint(0, 2 * shift + 1, (2, b))
    rows = (torch.arange(h)[None, :] + dy[:, None])[:, None, :, None]
    columns = (torch.arange(w)[None, :] + dx[:, None])[:, None, None, :]
    return padded[
        torch.arange(b)[:, None, None, None], torch.arange(images.shape[1])[None, :, None, None], rows, columns
    ]


@contextmanager
def _progress(label: str, epochs: int, quiet: bool) -> Iterator[Callable[[], None]]:
    """A bar on standard error, only where a person looks at it."""
    if quiet or epochs == 0 or not sys.stderr.isatty():
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=epochs)
        yield lambda: progress.advance(task)


@torch.no_grad()
def predict(net: nn.Module, x: Float32) -> Float32:
    """Logits (n, classes) of the network in evaluation mode."""
    net.eval()
    parts = [net(torch.from_numpy(x[i : i + _EVALUATION_BATCH])).numpy() for i in range(0, len(x), _EVALUATION_BATCH)]
    return np.concatenate(parts)


def accuracy(logits: npt.NDArray[np.floating], y: Labels) -> float:
    """The share of rows whose largest entry is at the label."""
    return float((logits.argmax(1) == y).mean())
