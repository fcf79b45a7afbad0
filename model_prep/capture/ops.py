"""One row per ATen operation: how a captured call becomes graph nodes. To support a layer, add a row."""

from __future__ import annotations

from collections.abc import Callable

from ..graph import ACTIVATION
from . import arithmetic, layers
from .values import Call, Poly, Unsupported

__all__ = ["HANDLERS", "SUPPORTED"]

SUPPORTED = (
    "conv2d, linear, matmul, avg_pool2d, adaptive_avg_pool2d, mean and sum over the image, batch_norm in evaluation, "
    "flatten/reshape/view, cat along the channels, +, -, * and / by a constant, +, - and * of tensors, x**2, square, "
    "dropout in evaluation"
)


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


Handler = Callable[[Call], "Poly | list[Poly]"]

HANDLERS: dict[str, Handler] = {
    "aten.linear.default": layers.linear,
    "aten.matmul.default": layers.matmul,
    "aten.mm.default": layers.matmul,
    "aten.bmm.default": layers.matmul,
    "aten.cat.default": layers.concat,
    "aten.addmm.default": layers.addmm,
    "aten.conv2d.default": layers.conv2d,
    "aten.conv2d.padding": layers.conv2d,
    "aten.convolution.default": layers.convolution,
    "aten.avg_pool2d.default": layers.avg_pool2d,
    "aten.adaptive_avg_pool2d.default": layers.adaptive_avg_pool2d,
    "aten._adaptive_avg_pool2d.default": layers.adaptive_avg_pool2d,
    "aten.mean.dim": layers.mean,
    "aten.sum.dim_IntList": layers.total,
    "aten.view.default": layers.reshape,
    "aten.reshape.default": layers.reshape,
    "aten._unsafe_view.default": layers.reshape,
    "aten.flatten.using_ints": layers.reshape,
    "aten.unflatten.int": layers.reshape,
    "aten.squeeze.default": layers.reshape,
    "aten.squeeze.dim": layers.reshape,
    "aten.squeeze.dims": layers.reshape,
    "aten.unsqueeze.default": layers.reshape,
    "aten.clone.default": layers.identity,
    "aten.alias.default": layers.identity,
    "aten.detach.default": layers.identity,
    "aten.contiguous.default": layers.identity,
    "aten.lift_fresh_copy.default": layers.identity,
    "aten.to.dtype": layers.cast,
    "aten.to.dtype_layout": layers.cast,
    "aten.to.device": layers.cast,
    "aten.type_as.default": layers.identity,
    "aten._to_copy.default": layers.cast,
    "aten.dropout.default": layers.dropout,
    "aten.feature_dropout.default": layers.dropout,
    "aten.batch_norm.default": layers.batch_norm,
    "aten._native_batch_norm_legit_no_training.default": layers.batch_norm_functional,
    "aten.add.Tensor": arithmetic.add,
    "aten.add.Scalar": arithmetic.add,
    "aten.sub.Tensor": arithmetic.add,
    "aten.sub.Scalar": arithmetic.add,
    "aten.rsub.Scalar": arithmetic.rsub,
    "aten.rsub.Tensor": arithmetic.rsub,
    "aten.mul.Tensor": arithmetic.mul,
    "aten.mul.Scalar": arithmetic.mul,
    "aten.div.Tensor": arithmetic.div,
    "aten.div.Scalar": arithmetic.div,
    "aten.neg.default": arithmetic.neg,
    "aten.square.default": arithmetic.square,
    "aten.pow.Tensor_Scalar": arithmetic.power,
    "aten.relu.default": _activation("relu"),
    "aten.leaky_relu.default": _activation("leaky_relu", "negative_slope"),
    "aten.gelu.default": _activation("gelu", "approximate"),
    "aten.silu.default": _activation("silu"),
    "aten.elu.default": _activation("elu", "alpha"),
    "aten.softplus.default": _activation("softplus", "beta", "threshold"),
    "aten.selu.default": _activation("selu"),
    "aten.celu.default": _activation("celu", "alpha"),
    "aten.mish.default": _activation("mish"),
    "aten.hardswish.default": _activation("hardswish"),
    "aten.relu6.default": _activation("relu6"),
    "aten.hardtanh.default": _activation("hardtanh", "min_val", "max_val"),
    "aten.sigmoid.default": _activation("sigmoid"),
    "aten.hardsigmoid.default": _activation("hardsigmoid"),
    "aten.tanh.default": _activation("tanh"),
}
