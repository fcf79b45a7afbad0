"""`export`: a module as it stands, captured and folded exactly, ready to be planned. No training, no compression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from he_runtime.model import CompressedModel, InputSpec
from he_runtime.reference import calibrate, normalize

from .capture.capture import capture
from .folding.folding import fold

__all__ = ["export"]


def export(
    module: nn.Module,
    example_input: torch.Tensor | npt.NDArray[Any],
    *,
    name: str = "model",
    input_spec: InputSpec | None = None,
    labels: Sequence[str] = (),
    post_processing: Literal["none", "argmax", "softmax"] | None = None,
    calibration: npt.ArrayLike | None = None,
    folding: bool = True,
) -> CompressedModel:
    """Capture `module` (in evaluation mode) by torch.export into a CompressedModel.

    `example_input` has shape (B, *sample) and holds what the module sees, that is, normalized values. `input_spec`
    says what the client sends and how it normalizes; its shape is taken from the example. `calibration` holds raw
    inputs (B, *sample); with it, ranges and mean squares are measured. `folding` absorbs batch norms and completes
    squares, which changes no value beyond rounding. Post-processing is argmax where there are labels, none otherwise.

    Raises ModelError (MODEL_UNSUPPORTED) with the operation and its source line where something has no homomorphic
    form, and InputError where `calibration` does not fit the input.
    """
    spec = input_spec or InputSpec("", tuple(example_input.shape[1:]), low=-1.0, high=1.0)
    graph = capture(module, example_input, input_name=spec.name, allow_activations=False)
    graph = fold(graph) if folding else graph
    if calibration is not None:
        raw = np.asarray(calibration)
        spec = replace(spec, shape=graph.input_shape, low=float(raw.min()), high=float(raw.max()))
    model = graph.to_model(name, spec, labels, post_processing)
    return model if calibration is None else calibrate(model, normalize(model.input, calibration))
