"""Captured layers -> nodes: linear maps, convolutions, averages, reshapes, joins, and batch norm as an affine map."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .arithmetic import affine
from .values import Call, Constant, Floats, Poly, Unsupported

__all__ = [
    "adaptive_avg_pool2d",
    "addmm",
    "avg_pool2d",
    "batch_norm",
    "batch_norm_functional",
    "cast",
    "concat",
    "conv2d",
    "convolution",
    "dropout",
    "identity",
    "linear",
    "matmul",
    "mean",
    "reshape",
    "total",
]


def _vector(poly: Poly, layer: str) -> Poly:
    if len(poly.shape) != 1:
        raise Unsupported(
            f"{layer} of a tensor of shape {poly.shape} per sample", "a vector: try x.flatten(1) before it"
        )
    return poly


def linear(call: Call) -> Poly:
    x = _vector(call.poly("input"), "a linear layer")
    return call.emit("dense", x, arrays=_weights(call.constant("weight"), call.constant("bias")))


def matmul(call: Call) -> Poly:
    left = "self" if call["self"] is not None else "input"
    right = "mat2" if call["mat2"] is not None else "other"
    if isinstance(call[left], Constant):
        raise Unsupported("the constant is on the left of the product", "x @ weight")
    if isinstance(call[right], Poly):
        return _matrices(call, call.poly(left), call.poly(right))
    x, weight = _vector(call.poly(left), "a matrix product"), call.constant(right)
    if weight is None or weight.value.ndim != 2:
        raise Unsupported("the product is not by a constant matrix", "a constant of shape (in, out)")
    return call.emit("dense", x, arrays={"weight": Constant(weight.value.t().contiguous())})


def _matrices(call: Call, left: Poly, right: Poly) -> Poly:
    """The product of two matrices per sample, or of as many of them as there are heads."""
    if min(len(left.shape), len(right.shape)) < 2 or left.shape[:-2] != right.shape[:-2]:
        raise Unsupported(
            f"a matrix product of {left.shape} by {right.shape} per sample",
            "(..., m, k) by (..., k, n) with the same axes before them",
        )
    return call.emit("matmul", *(replace(v, source=v.source or call.name) for v in (left, right)))


def concat(call: Call) -> Poly:
    """Along the channels or features."""
    tensors, axis = call["tensors"], int(call["dim"]) % (len(call.shape) + 1)
    if axis != 1 or not all(isinstance(x, Poly) for x in tensors):
        raise Unsupported(
            f"it joins tensors along axis {axis}",
            "torch.cat((a, b), 1), the channels of two tensors that depend on the input",
        )
    return call.emit("concat", *(replace(x, source=x.source or call.name) for x in tensors))


def addmm(call: Call) -> Poly:
    x, weight, bias = _vector(call.poly("mat1"), "addmm"), call.constant("mat2"), call.constant("self")
    assert weight is not None and bias is not None
    if bias.value.ndim == 2 and len(bias.value) != 1:
        raise Unsupported("its bias differs between the samples of a batch", "a bias of shape (out,)")
    scaled = weight.value.t() * call["alpha"]
    shift = torch.broadcast_to(bias.value * call["beta"], (1, len(scaled)))[0]
    return call.emit("dense", x, arrays={"weight": Constant(scaled.contiguous()), "bias": Constant(shift.contiguous())})


def _weights(weight: Constant | None, bias: Constant | None) -> dict[str, Constant | Floats]:
    assert weight is not None
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}


def _pair(value: Any) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return values * 2 if len(values) == 1 else values


def _image(poly: Poly, layer: str) -> Poly:
    if len(poly.shape) != 3:
        raise Unsupported(f"{layer} of a tensor of shape {poly.shape} per sample", "(channel, height, width)")
    return poly


def conv2d(call: Call) -> Poly:
    x, weight = _image(call.poly("input"), "conv2d"), call.constant("weight")
    assert weight is not None
    attrs = {
        "stride": _pair(call["stride"]),
        "padding": _conv_padding(call["padding"], weight.value.shape[2:], _pair(call["dilation"])),
        "dilation": _pair(call["dilation"]),
        "groups": int(call["groups"]),
    }
    return call.emit("conv2d", x, attrs=attrs, arrays=_weights(weight, call.constant("bias")))


def _conv_padding(padding: Any, kernel: tuple[int, ...], dilation: list[int]) -> list[int]:
    if padding == "valid":
        return [0, 0]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(t % 2 for t in total):
            raise Unsupported("padding='same' with an even kernel pads one side more", "an odd kernel")
        return [t // 2 for t in total]
    return _pair(padding)


def convolution(call: Call) -> Poly:
    if call["transposed"]:
        raise Unsupported("it is a transposed convolution", "conv2d")
    return conv2d(call)


def avg_pool2d(call: Call) -> Poly:
    x = _image(call.poly("self"), "avg_pool2d")
    kernel, padding = _pair(call["kernel_size"]), _pair(call["padding"])
    stride = _pair(call["stride"]) if call["stride"] else kernel
    if any(padding) and not call["count_include_pad"]:
        raise Unsupported("count_include_pad=False with padding", "count_include_pad=True or no padding")
    if call["divisor_override"] not in (None, kernel[0] * kernel[1]):
        raise Unsupported("divisor_override", "the kernel's size as the divisor")
    floor = tuple((s + 2 * p - k) // t + 1 for s, p, k, t in zip(x.shape[1:], padding, kernel, stride, strict=True))
    if floor != call.shape[1:]:
        raise Unsupported("ceil_mode reaches past the image", "ceil_mode=False")
    return call.emit("avg_pool2d", x, attrs={"kernel": kernel, "stride": stride, "padding": padding})


def adaptive_avg_pool2d(call: Call) -> Poly:
    x = _image(call.poly("self"), "adaptive_avg_pool2d")
    if any(size % target for size, target in zip(x.shape[1:], call.shape[1:], strict=True)):
        raise Unsupported(f"{x.shape[1:]} is no multiple of {call.shape[1:]}", "an output size that divides the image")
    kernel = [size // target for size, target in zip(x.shape[1:], call.shape[1:], strict=True)]
    return call.emit("avg_pool2d", x, attrs={"kernel": kernel, "stride": kernel, "padding": [0, 0]})


def mean(call: Call) -> Poly:
    return _image_mean(call, "a mean", "x.mean((2, 3))")


def total(call: Call) -> Poly:
    pooled = _image_mean(call, "a sum", "x.sum((2, 3))")
    height, width = call.poly("self").shape[1:]
    return affine(pooled, np.array(float(height * width)), np.array(0.0))


def _image_mean(call: Call, kind: str, example: str) -> Poly:
    """The average over height and width, with or without keeping the two axes."""
    x = call.poly("self")
    axes = sorted(int(d) % (len(x.shape) + 1) for d in call["dim"] or ())
    if len(x.shape) != 3 or axes != [2, 3]:
        raise Unsupported(f"{kind} over axes {axes or 'of all kinds'}", f"one over height and width: {example}")
    kernel = list(x.shape[1:])
    pooled = call.emit(
        "avg_pool2d", x, attrs={"kernel": kernel, "stride": kernel, "padding": [0, 0]}, shape=(x.shape[0], 1, 1)
    )
    return pooled if call.shape == pooled.shape else call.emit("reshape", pooled)


def reshape(call: Call) -> Poly:
    x = call.poly("self")
    return x if x.shape == call.shape else call.emit("reshape", x)


def identity(call: Call) -> Poly:
    return call.poly("self" if call["self"] is not None else "input")


def cast(call: Call) -> Poly:
    dtype = call["dtype"]
    if dtype is not None and not dtype.is_floating_point:
        raise Unsupported(f"it rounds to {dtype}", "floating-point values throughout")
    return call.poly("self")


def dropout(call: Call) -> Poly:
    if call["train"]:
        raise Unsupported("dropout is switched on in evaluation", "F.dropout(x, training=self.training)")
    return call.poly("input")


def batch_norm(call: Call) -> Poly:
    if call["training"]:
        raise Unsupported("it normalizes by the batch's own statistics", "tracked running statistics")
    x = call.poly("input")
    moments = [call.constant(key) for key in ("running_mean", "running_var")]
    if any(m is None for m in moments):
        raise Unsupported("it has no running statistics", "track_running_stats=True")
    mean, variance = (np.asarray(m.value.double().numpy()) for m in moments if m is not None)
    weight, bias = call.constant("weight"), call.constant("bias")
    gain = np.ones_like(mean) if weight is None else np.asarray(weight.value.detach().double().numpy())
    offset = np.zeros_like(mean) if bias is None else np.asarray(bias.value.detach().double().numpy())
    scale = gain / np.sqrt(variance + call["eps"])
    return affine(x, scale, offset - mean * scale)


def batch_norm_functional(call: Call) -> list[Poly]:
    return [batch_norm(call)]
