"""The one training loop: seeded, cosine-scheduled, with optional distillation, penalty and hooks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from .recipe import Training

__all__ = ["Hooks", "accuracy", "fit", "predict"]

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
    """
    hooks = hooks or Hooks()
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = _optimizer(net, training)
    steps = training.epochs * max(1, len(x) // training.batch_size)
    done = 0
    with torch.random.fork_rng(devices=[]), _progress(label, training.epochs, quiet) as advance:
        torch.manual_seed(seed)
        for epoch in range(training.epochs):
            net.train()
            if hooks.before_epoch:
                hooks.before_epoch(epoch / training.epochs)
            for batch in _batches(len(x), training.batch_size):
                _set_learning_rate(optimizer, training.learning_rate, done / steps)
                if hooks.before_step:
                    hooks.before_step(done / steps)
                images = _shifted(inputs[batch], training.shift)
                _step(net, optimizer, images, targets[batch], training, teacher, hooks)
                done += 1
            advance()
    net.eval()


def _step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    training: Training,
    teacher: nn.Module | None,
    hooks: Hooks,
) -> None:
    loss = _loss(net(images), targets, training, teacher, images)
    if hooks.penalty:
        loss = loss + hooks.penalty()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    # Quadratics have unbounded slopes: one outlier must not undo the epoch.
    nn.utils.clip_grad_norm_(net.parameters(), _GRADIENT_NORM)
    optimizer.step()
    if hooks.after_step:
        hooks.after_step()


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
