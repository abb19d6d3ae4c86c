"""The ATen operators this project runs, each reviewed: no file access, no randomness beyond dropout, no code loading.

`role` says what the coupling analysis and the shrinker may assume about an operator; anything `opaque` is executed but
its operands are left whole.
"""

from __future__ import annotations

from types import MappingProxyType

# Convolutions and linears create units (output channels) and read others (input channels).
CONV = ("conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding")
CONV_TRANSPOSE = ("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
LINEAR = ("linear.default",)
BATCH_NORM = ("batch_norm.default",)
INSTANCE_NORM = ("instance_norm.default",)
GROUP_NORM = ("group_norm.default",)
PRELU = ("prelu.default",)
# One tensor in, one out, element by element; the value at 0 is found by running the operator.
POINTWISE = (
    "relu.default", "relu6.default", "leaky_relu.default", "elu.default", "celu.default", "selu.default",
    "gelu.default", "silu.default", "mish.default", "hardswish.default", "hardsigmoid.default", "hardtanh.default",
    "sigmoid.default", "tanh.default", "softplus.default", "log_sigmoid.default", "hardshrink.default",
    "softshrink.default", "threshold.default", "abs.default", "neg.default", "exp.default", "log.default",
    "sqrt.default", "rsqrt.default", "square.default", "reciprocal.default", "sin.default", "cos.default",
    "erf.default", "clamp.default", "clamp_min.default", "clamp_max.default", "pow.Tensor_Scalar", "add.Scalar",
    "sub.Scalar", "mul.Scalar", "div.Scalar", "rsub.Scalar", "dropout.default", "feature_dropout.default",
    "alpha_dropout.default", "feature_alpha_dropout.default", "contiguous.default", "clone.default", "alias.default",
    "detach.default", "lift_fresh_copy.default", "to.dtype", "_to_copy.default", "type_as.default",
    "gt.Scalar", "ge.Scalar", "lt.Scalar", "le.Scalar", "eq.Scalar", "ne.Scalar", "zeros_like.default",
    "ones_like.default", "full_like.default",
)  # fmt: skip
# Two tensors (or a tensor and a number), with broadcasting.
BINARY = (
    "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "maximum.default", "minimum.default", "rsub.Tensor",
    "gt.Tensor", "ge.Tensor", "lt.Tensor", "le.Tensor", "eq.Tensor", "ne.Tensor",
)  # fmt: skip
# Every output element is one input element: followed by running the operator on arrays of atom numbers.
MOVE = (
    "view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints", "unflatten.int",
    "permute.default", "transpose.int", "t.default", "movedim.int", "movedim.intlist", "swapaxes.default",
    "squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default", "expand.default", "expand_as.default",
    "slice.Tensor",
    "select.int", "narrow.default", "chunk.default", "split.Tensor", "split.sizes", "split_with_sizes.default",
    "unbind.int", "cat.default", "concat.default", "stack.default", "pixel_shuffle.default", "pixel_unshuffle.default",
    "channel_shuffle.default", "native_channel_shuffle.default", "flip.default", "repeat.default",
    "upsample_nearest1d.vec", "upsample_nearest2d.vec", "upsample_nearest3d.vec", "upsample_nearest2d.default",
    "_upsample_nearest_exact2d.vec", "reflection_pad1d.default", "reflection_pad2d.default",
    "replication_pad1d.default", "replication_pad2d.default",
)  # fmt: skip
# Constant padding of channels creates channels that nobody produces.
PAD = ("constant_pad_nd.default", "pad.default")
# Each output element depends on input elements of the same sample and channel.
SPATIAL = (
    "max_pool1d.default", "max_pool2d.default", "max_pool3d.default", "avg_pool1d.default", "avg_pool2d.default",
    "avg_pool3d.default", "adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "adaptive_avg_pool3d.default",
    "upsample_bilinear2d.vec", "upsample_bicubic2d.vec", "upsample_linear1d.vec", "upsample_trilinear3d.vec",
    "upsample_bilinear2d.default",
)  # fmt: skip
REDUCE = ("mean.dim", "sum.dim_IntList", "amax.default", "amin.default")
OPAQUE = (
    "layer_norm.default", "softmax.int", "log_softmax.int", "_softmax.default", "_log_softmax.default",
    "matmul.default", "bmm.default", "mm.default", "addmm.default", "scaled_dot_product_attention.default",
    "mean.default", "sum.default", "index_select.default", "linalg_vector_norm.default", "argmax.default", "max.dim",
    "min.dim", "einsum.default", "roll.default", "repeat_interleave.self_int", "cumsum.default", "glu.default",
    "where.self", "where.ScalarOther", "where.ScalarSelf", "masked_fill.Scalar", "mv.default",
    "pow.Tensor_Tensor", "unfold.default", "im2col.default", "col2im.default", "baddbmm.default",
    "adaptive_max_pool2d.default", "max_pool2d_with_indices.default", "adaptive_max_pool1d.default", "outer.default",
    "grid_sampler.default", "bilinear.default", "std.correction", "var.correction", "std.dim", "var.dim",
)  # fmt: skip


def _table() -> dict[str, str]:
    roles = {
        "conv": CONV,
        "conv_transpose": CONV_TRANSPOSE,
        "linear": LINEAR,
        "batch_norm": BATCH_NORM,
        "instance_norm": INSTANCE_NORM,
        "group_norm": GROUP_NORM,
        "prelu": PRELU,
        "pointwise": POINTWISE,
        "binary": BINARY,
        "move": MOVE,
        "pad": PAD,
        "spatial": SPATIAL,
        "reduce": REDUCE,
        "opaque": OPAQUE,
    }
    table = {f"aten.{name}": role for role, names in roles.items() for name in names}
    table["getitem"] = "move"
    table["input"] = "input"
    return table


ROLES = MappingProxyType(_table())
