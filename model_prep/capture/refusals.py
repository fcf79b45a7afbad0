"""What users write that has no homomorphic form here: why, and what to write instead. One row per reason."""

from __future__ import annotations

from .values import Unsupported

__all__ = ["refusal"]

_ROWS: tuple[tuple[str, str, str], ...] = (
    (
        "stack vstack",
        "it joins tensors along a new axis",
        "torch.cat((a, b), 1), which joins their channels",
    ),
    (
        "slice select split split_with_sizes chunk narrow unbind index index_select gather masked_select slice_scatter",
        "it takes a part of a tensor",
        "whole tensors: a linear layer or convolution with weights for that part only",
    ),
    (
        "permute transpose t swapaxes movedim flip roll pixel_shuffle pixel_unshuffle channel_shuffle",
        "it moves axes or elements",
        "the order (channel, height, width) throughout",
    ),
    (
        "expand expand_as repeat repeat_interleave tile upsample_nearest2d upsample_bilinear2d",
        "it copies elements",
        "tensors of equal shape, or a linear layer that makes the copies",
    ),
    (
        "max_pool2d max_pool2d_with_indices adaptive_max_pool2d",
        "a maximum is not a polynomial",
        "avg_pool2d, or a convolution with a stride",
    ),
    (
        "max min amax amin maximum minimum clamp clamp_min clamp_max",
        "a maximum is not a polynomial",
        "an activation such as F.relu, which `compress` replaces by a polynomial",
    ),
    (
        "gt ge lt le eq ne where sign heaviside masked_fill",
        "a comparison of encrypted values is not a polynomial",
        "arithmetic without conditions, or an activation such as F.relu, which `compress` replaces",
    ),
    (
        "softmax log_softmax _softmax _log_softmax logsumexp argmax topk",
        "it is no polynomial, and at the end of a network it belongs after decryption",
        "the logits as output; the client then applies post_processing='softmax' or 'argmax'",
    ),
    (
        "layer_norm native_layer_norm group_norm native_group_norm instance_norm rms_norm linalg_vector_norm norm var std "
        "_native_batch_norm_legit local_response_norm",
        "it divides by statistics of the encrypted values",
        "a batch norm with running statistics, which are constants in evaluation",
    ),
    ("abs sqrt rsqrt exp log sin cos erf round floor ceil trunc", "it is not a polynomial", ""),
    ("reciprocal", "it divides by a tensor that depends on the input", "division by a constant"),
    (
        "pad constant_pad_nd reflection_pad2d replication_pad2d",
        "padding apart from a convolution",
        "padding=... of the convolution or the average pool, with zeros",
    ),
    (
        "conv1d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
        "a convolution of this kind",
        "conv2d; a sequence is an image of height 1",
    ),
    (
        "einsum baddbmm tensordot bilinear scaled_dot_product_attention",
        "a general product of tensors",
        "F.linear(x, weight) with a constant weight, or x @ y",
    ),
    ("prelu", "its slopes are learned per channel", "F.leaky_relu, which `compress` replaces by a learned polynomial"),
    ("native_dropout alpha_dropout", "dropout is switched on in evaluation", "F.dropout(x, training=self.training)"),
    (
        "zeros_like ones_like full_like new_zeros new_ones new_full",
        "a constant of the input's own shape",
        "a plain number, or a constant per channel without the batch axis",
    ),
    (
        "rand_like randn_like randint_like rrelu rrelu_with_noise bernoulli",
        "it draws random numbers",
        "a forward that depends on its input alone",
    ),
)
_BY_OPERATION = {name: (why, hint) for names, why, hint in _ROWS for name in names.split()}


def refusal(target: str) -> Unsupported:
    """What to say of an operation ("aten.cat.default") that has no handler."""
    operation = target.split(".")[1] if target.startswith("aten.") else target
    return Unsupported(*_BY_OPERATION.get(operation, ("there is no homomorphic form for it", "")))
