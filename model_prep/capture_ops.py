"""One row per ATen operation: how a captured call becomes graph nodes. To support a layer, add a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from .capture_values import Call, Constant, Floats, Poly, Unsupported
from .graph import ACTIVATION

__all__ = ["HANDLERS", "SUPPORTED", "fold_constant"]

SUPPORTED = (
    "conv2d, linear, matmul by a constant, avg_pool2d, adaptive_avg_pool2d, mean over the image, batch_norm in "
    "evaluation, flatten/reshape/view, +, -, * and / by a constant, + and - of tensors, x**2, x*x, square, dropout in "
    "evaluation"
)


def fold_constant(node: fx.Node, bound: Mapping[str, Any]) -> Any:
    """Evaluate an operation none of whose arguments depends on the input."""

    def plain(value: Any) -> Any:
        if isinstance(value, Constant):
            return value.value
        return [plain(item) for item in value] if isinstance(value, list) else value

    schema = getattr(node.target, "_schema", None)
    arguments = {key: plain(value) for key, value in bound.items()}
    with torch.no_grad():
        if schema is None:
            result = node.target(*arguments.values())  # type: ignore[operator]
        else:
            positional = [arguments.pop(a.name) for a in schema.arguments if not a.kwarg_only and a.name in arguments]
            result = node.target(*positional, **arguments)  # type: ignore[operator]
    if isinstance(result, torch.Tensor):
        unchanged = [v for v in bound.values() if isinstance(v, Constant) and v.value is result]
        return unchanged[0] if unchanged else Constant(result)
    return result


def _vector(poly: Poly, layer: str) -> Poly:
    if len(poly.shape) != 1:
        raise Unsupported(
            f"{layer} of a tensor of shape {poly.shape} per sample", "a vector: try x.flatten(1) before it"
        )
    return poly


def _linear(call: Call) -> Poly:
    x = _vector(call.poly("input"), "a linear layer")
    return call.emit("dense", x, arrays=_weights(call.constant("weight"), call.constant("bias")))


def _matmul(call: Call) -> Poly:
    left = "self" if call["self"] is not None else "input"
    right = "mat2" if call["mat2"] is not None else "other"
    if isinstance(call[left], Constant):
        raise Unsupported("the constant is on the left of the product", "x @ weight")
    x, weight = _vector(call.poly(left), "a matrix product"), call.constant(right)
    if weight is None or weight.value.ndim != 2:
        raise Unsupported("the product is not by a constant matrix", "a constant of shape (in, out)")
    return call.emit("dense", x, arrays={"weight": Constant(weight.value.t().contiguous())})


def _addmm(call: Call) -> Poly:
    x, weight, bias = _vector(call.poly("mat1"), "addmm"), call.constant("mat2"), call.constant("self")
    assert weight is not None and bias is not None
    scaled = weight.value.t() * call["alpha"]
    shift = (bias.value * call["beta"]).expand(scaled.shape[0])
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


def _conv2d(call: Call) -> Poly:
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


def _convolution(call: Call) -> Poly:
    if call["transposed"]:
        raise Unsupported("it is a transposed convolution", "conv2d")
    return _conv2d(call)


def _avg_pool2d(call: Call) -> Poly:
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


def _adaptive_avg_pool2d(call: Call) -> Poly:
    x = _image(call.poly("self"), "adaptive_avg_pool2d")
    if any(size % target for size, target in zip(x.shape[1:], call.shape[1:], strict=True)):
        raise Unsupported(f"{x.shape[1:]} is no multiple of {call.shape[1:]}", "an output size that divides the image")
    kernel = [size // target for size, target in zip(x.shape[1:], call.shape[1:], strict=True)]
    return call.emit("avg_pool2d", x, attrs={"kernel": kernel, "stride": kernel, "padding": [0, 0]})


def _mean(call: Call) -> Poly:
    x = call.poly("self")
    axes = sorted(int(d) % (len(x.shape) + 1) for d in call["dim"])
    if len(x.shape) != 3 or axes != [2, 3]:
        raise Unsupported(f"a mean over axes {axes}", "a mean over height and width: x.mean((2, 3))")
    kernel = list(x.shape[1:])
    pooled = call.emit(
        "avg_pool2d", x, attrs={"kernel": kernel, "stride": kernel, "padding": [0, 0]}, shape=(x.shape[0], 1, 1)
    )
    return pooled if call.shape == pooled.shape else call.emit("reshape", pooled)


def _reshape(call: Call) -> Poly:
    x = call.poly("self")
    return x if x.shape == call.shape else call.emit("reshape", x)


def _identity(call: Call) -> Poly:
    return call.poly("self" if call["self"] is not None else "input")


def _dropout(call: Call) -> Poly:
    if call["train"]:
        raise Unsupported("dropout is switched on in evaluation", "F.dropout(x, training=self.training)")
    return call.poly("input")


def _batch_norm(call: Call) -> Poly:
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
    return _affine(x, scale, offset - mean * scale)


def _batch_norm_functional(call: Call) -> list[Poly]:
    return [_batch_norm(call)]


def _affine(x: Poly, scale: Floats, shift: Floats) -> Poly:
    return replace(x, a=scale * x.a, b=scale * x.b, c=scale * x.c + shift, source="")


def _coefficient(value: Any, x: Poly) -> Floats:
    """A constant operand as a coefficient per channel, shape () or (channels,)."""
    array = value.value.detach().double().numpy() if isinstance(value, Constant) else np.array(float(value))
    if array.ndim > len(x.shape):
        if array.ndim > len(x.shape) + 1 or array.shape[0] != 1:
            raise Unsupported(f"a constant of shape {array.shape} differs between samples", "one constant per channel")
        array = array[0]
    array = array.reshape((1,) * (len(x.shape) - array.ndim) + array.shape)
    if any(size not in (1, own) for size, own in zip(array.shape, x.shape, strict=True)):
        raise Unsupported(
            f"a constant of shape {array.shape} would enlarge a tensor of shape {x.shape}", "equal shapes"
        )
    flat = array.reshape(array.shape[0], -1)
    if not (flat == flat[:, :1]).all():
        raise Unsupported("the constant differs between the positions of a channel", "one constant per channel")
    column = flat[:, 0]
    return np.asarray(column[0] if column.size == 1 else column, dtype=np.float64)


def _add(call: Call) -> Poly:
    left, right, alpha = call["self"], call["other"], float(1 if call["alpha"] is None else call["alpha"])
    if "sub" in call.target:
        alpha = -alpha
    if not isinstance(left, Poly):
        return _affine(call.poly("other"), np.array(alpha), _coefficient(left, call.poly("other")))
    if not isinstance(right, Poly):
        return _affine(left, np.array(1.0), alpha * _coefficient(right, left))
    if left.shape != right.shape:
        raise Unsupported(f"it broadcasts {right.shape} against {left.shape}", "tensors of equal shape")
    right = _affine(right, np.array(alpha), np.array(0.0)) if alpha != 1 else right
    if left.base == right.base:
        return Poly(left.base, left.shape, left.a + right.a, left.b + right.b, left.c + right.c)
    return call.emit("add", *(replace(v, source=v.source or call.name) for v in (left, right)))


def _rsub(call: Call) -> Poly:
    alpha = float(1 if call["alpha"] is None else call["alpha"])
    x = call.poly("self")
    return _affine(x, np.array(-alpha), _coefficient(call["other"], x))


def _mul(call: Call) -> Poly:
    left, right = call["self"], call["other"]
    if isinstance(left, Poly) and isinstance(right, Poly):
        return _product(call, left, right)
    x, factor = (left, right) if isinstance(left, Poly) else (right, left)
    return _affine(x, _coefficient(factor, x), np.array(0.0))


def _product(call: Call, left: Poly, right: Poly) -> Poly:
    """The product of two affine functions of one node; a square of anything is of that kind once it is a node."""
    if left.base != right.base or left.degree + right.degree > 2:
        left, right = (
            Poly(call.builder.materialize(replace(v, source=v.source or call.name)), v.shape) for v in (left, right)
        )
    if left.base != right.base or left.shape != right.shape:
        raise Unsupported("it is a product of two different tensors that depend on the input", "x*x or x**2")
    return Poly(left.base, left.shape, left.b * right.b, left.b * right.c + left.c * right.b, left.c * right.c)


def _div(call: Call) -> Poly:
    x, divisor = call["self"], call["other"]
    if not isinstance(x, Poly) or isinstance(divisor, Poly):
        raise Unsupported("it divides by a tensor that depends on the input", "division by a constant")
    return _affine(x, 1.0 / _coefficient(divisor, x), np.array(0.0))


def _neg(call: Call) -> Poly:
    return _affine(call.poly("self"), np.array(-1.0), np.array(0.0))


def _square(call: Call) -> Poly:
    return _product(call, call.poly("self"), call.poly("self"))


def _pow(call: Call) -> Poly:
    exponent = call["exponent"]
    if exponent == 1:
        return call.poly("self")
    if exponent != 2:
        raise Unsupported(f"the power {exponent}", "x**2")
    return _square(call)


def _activation(function: str, *options: str) -> Callable[[Call], Poly]:
    def handle(call: Call) -> Poly:
        x = call.poly("self" if call["self"] is not None else "input")
        if not call.builder.allow_activations:
            raise Unsupported(
                f"{function} is not a polynomial", "x**2 or a*x**2+b*x+c, or `compress`, which replaces it"
            )
        attrs = {key: call[key] for key in options if call[key] is not None}
        return call.emit(ACTIVATION, x, attrs={"function": function, **attrs})

    return handle


def _max_pool(call: Call) -> Poly:
    raise Unsupported("a maximum is not a polynomial", "avg_pool2d, or a convolution with a stride")


def _moved_axes(call: Call) -> Poly:
    raise Unsupported("it moves axes", "the order (channel, height, width) throughout")


Handler = Callable[[Call], "Poly | list[Poly]"]

HANDLERS: dict[str, Handler] = {
    "aten.linear.default": _linear,
    "aten.matmul.default": _matmul,
    "aten.mm.default": _matmul,
    "aten.addmm.default": _addmm,
    "aten.conv2d.default": _conv2d,
    "aten.conv2d.padding": _conv2d,
    "aten.convolution.default": _convolution,
    "aten.avg_pool2d.default": _avg_pool2d,
    "aten.adaptive_avg_pool2d.default": _adaptive_avg_pool2d,
    "aten._adaptive_avg_pool2d.default": _adaptive_avg_pool2d,
    "aten.mean.dim": _mean,
    "aten.view.default": _reshape,
    "aten.reshape.default": _reshape,
    "aten._unsafe_view.default": _reshape,
    "aten.flatten.using_ints": _reshape,
    "aten.unflatten.int": _reshape,
    "aten.squeeze.default": _reshape,
    "aten.squeeze.dim": _reshape,
    "aten.squeeze.dims": _reshape,
    "aten.unsqueeze.default": _reshape,
    "aten.clone.default": _identity,
    "aten.alias.default": _identity,
    "aten.detach.default": _identity,
    "aten.contiguous.default": _identity,
    "aten.lift_fresh_copy.default": _identity,
    "aten.to.dtype": _identity,
    "aten._to_copy.default": _identity,
    "aten._assert_tensor_metadata.default": lambda call: call.poly("a"),
    "aten.dropout.default": _dropout,
    "aten.feature_dropout.default": _dropout,
    "aten.batch_norm.default": _batch_norm,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm_functional,
    "aten.add.Tensor": _add,
    "aten.add.Scalar": _add,
    "aten.sub.Tensor": _add,
    "aten.sub.Scalar": _add,
    "aten.rsub.Scalar": _rsub,
    "aten.rsub.Tensor": _rsub,
    "aten.mul.Tensor": _mul,
    "aten.mul.Scalar": _mul,
    "aten.div.Tensor": _div,
    "aten.div.Scalar": _div,
    "aten.neg.default": _neg,
    "aten.square.default": _square,
    "aten.pow.Tensor_Scalar": _pow,
    "aten.relu.default": _activation("relu"),
    "aten.leaky_relu.default": _activation("leaky_relu", "negative_slope"),
    "aten.gelu.default": _activation("gelu", "approximate"),
    "aten.silu.default": _activation("silu"),
    "aten.elu.default": _activation("elu", "alpha"),
    "aten.softplus.default": _activation("softplus", "beta", "threshold"),
    "aten.max_pool2d.default": _max_pool,
    "aten.max_pool2d_with_indices.default": _max_pool,
    "aten.adaptive_max_pool2d.default": _max_pool,
    "aten.permute.default": _moved_axes,
    "aten.transpose.int": _moved_axes,
}
