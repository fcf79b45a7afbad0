"""What every core works on: a network that can be trained, one run of the optimiser at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..masks import Bools, Mask
from ..polynomials.polynomial import constrain
from ..settings import Training, Unusable
from ..train import Hooks
from ..trainable import TrainableGraph

__all__ = [
    "Floats",
    "Penalty",
    "Projection",
    "Session",
    "arrays",
    "core_hooks",
    "masks_of",
    "need",
    "need_arrays",
    "relative_distance",
    "set_arrays",
    "set_masks",
    "weights",
    "zero_masked",
]

Floats = npt.NDArray[np.float64]
Penalty = Callable[[], Tensor]  # a scalar to add to the loss
Projection = Callable[[Floats], Floats]  # the nearest array of a constraint set, in the same shape


class Session(Protocol):
    """A network with everything that its training needs: data, teacher, seed.

    One call of `fit` is one run of the optimiser with its own cosine schedule, so calling it once per round is the
    learning-rate reset that ADMM and reweighting ask for. It trains `net` in place and raises Diverged (train.py).
    """

    @property
    def net(self) -> TrainableGraph: ...

    def fit(self, training: Training, label: str, hooks: Hooks | None = None) -> None: ...


def weights(net: TrainableGraph) -> dict[str, Floats]:
    """Copies of the weight matrices and kernels as they are trained: without masks and rounding."""
    return arrays(net, net.weight_keys())


def arrays(net: TrainableGraph, keys: Iterable[str], *, masked: bool = False) -> dict[str, Floats]:
    """Copies of some arrays, with the zeros of their masks if `masked`."""
    values = {key: net.parameter(key).detach().double().numpy() for key in keys}
    return {key: v * masks_of(net)[key] if masked and key in net.masks else v for key, v in values.items()}


@torch.no_grad()
def set_arrays(net: TrainableGraph, values: Mapping[str, Floats]) -> None:
    """Put values (in float64, stored as float32) into the network."""
    for key, value in values.items():
        parameter = net.parameter(key)
        parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype))


def set_masks(net: TrainableGraph, mask: Mask | Mapping[str, Bools]) -> None:
    """Multiply weights by a mask from now on; arrays that it does not name keep the masks they have."""
    keep = mask.keep if isinstance(mask, Mask) else mask
    need_arrays(net, keep, "mask")
    for key, value in keep.items():
        shape = tuple(net.parameter(key).shape)
        need(value.shape == shape, f"mask {key!r}", f"shape {value.shape}", f"{shape}")
    net.masks = {**net.masks, **{key: torch.from_numpy(np.array(value, dtype=np.bool_)) for key, value in keep.items()}}


def masks_of(net: TrainableGraph) -> dict[str, Bools]:
    """The masks that the network has, as NumPy arrays."""
    return {key: mask.numpy().astype(np.bool_) for key, mask in net.masks.items()}


@torch.no_grad()
def zero_masked(net: TrainableGraph) -> None:
    """Make the masked weights themselves zero: neither momentum nor a penalty may have moved them."""
    for key, mask in net.masks.items():
        net.parameter(key).mul_(mask)


def core_hooks(
    net: TrainableGraph, penalties: Iterable[Penalty | None], *, then: Callable[[], None] | None = None
) -> Hooks:
    """Hooks of one run: the sum of the penalties; after each step polynomials within bounds, then `then`.

    By default that is `zero_masked`: masked weights stay at zero.
    """
    chosen = [p for p in penalties if p is not None]

    def after() -> None:
        constrain(net)
        if then:
            then()
        else:
            zero_masked(net)

    return Hooks(after_step=after, penalty=(lambda: torch.stack([p() for p in chosen]).sum()) if chosen else None)


def relative_distance(values: Floats, other: Floats) -> float:
    """||values - other|| / ||values||, and 0 where both are zero."""
    norm = max(float(np.linalg.norm(values)), np.finfo(np.float64).tiny)
    return float(np.linalg.norm(values - other)) / norm


def need(condition: bool, what: str, got: str, wanted: str) -> None:
    """ModelError "cannot use WHAT: got GOT, need WANTED" unless the condition holds."""
    if not condition:
        raise Unusable(what, f"got {got}, need {wanted}")


def need_arrays(net: TrainableGraph, keys: Iterable[str], what: str) -> None:
    """ModelError where a key names no array of the network."""
    unknown = sorted(set(keys) - set(net.graph.arrays))
    need(not unknown, f"the {what} of arrays", f"{unknown}", f"some of {sorted(net.graph.arrays)}")
