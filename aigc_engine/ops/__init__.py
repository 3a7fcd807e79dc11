"""Operations: each holds its signature, docstring, validation, reference and samples (see `dispatch.op`)."""

from aigc_engine.ops.activation import bias_act, geglu, swiglu
from aigc_engine.ops.attention import attention
from aigc_engine.ops.conv import conv2d, pack_conv2d
from aigc_engine.ops.conv1d import conv1d, pack_conv1d
from aigc_engine.ops.conv3d import conv3d, pack_conv3d
from aigc_engine.ops.conv_transpose import conv_transpose2d, pack_conv_transpose2d
from aigc_engine.ops.conv_transpose1d import conv_transpose1d, pack_conv_transpose1d
from aigc_engine.ops.decode import sample_token
from aigc_engine.ops.decoder import decoder_step
from aigc_engine.ops.diffusion import linear_update
from aigc_engine.ops.embedding import embedding
from aigc_engine.ops.gan import modulated_conv2d, upfirdn2d
from aigc_engine.ops.linear import linear, pack_linear
from aigc_engine.ops.norm import group_norm, group_norm_silu, layer_norm, rms_norm
from aigc_engine.ops.pointwise import pointwise
from aigc_engine.ops.random import philox_normal, philox_uniform
from aigc_engine.ops.resample import resize2d
from aigc_engine.packed import PackedWeight

__all__ = [
    "PackedWeight",
    "attention",
    "bias_act",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "decoder_step",
    "embedding",
    "geglu",
    "group_norm",
    "group_norm_silu",
    "layer_norm",
    "linear",
    "linear_update",
    "modulated_conv2d",
    "pack_conv1d",
    "pack_conv2d",
    "pack_conv3d",
    "pack_conv_transpose1d",
    "pack_conv_transpose2d",
    "pack_linear",
    "philox_normal",
    "philox_uniform",
    "pointwise",
    "resize2d",
    "rms_norm",
    "sample_token",
    "swiglu",
    "upfirdn2d",
]
