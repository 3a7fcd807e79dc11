"""Generators in the form that samples fastest: batch norms and class embedding folded into the weights.

Weights are packed for the native kernels, which compute a row with the same bits in every batch. On the
reference (no native module, or another device) torch's products round by the size of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_engine import ops
from aigc_engine.models.gan import DCGANGenerator, MLPGenerator, choose

Generate = Callable[[Tensor, Tensor | None], Tensor]


def norm_scale_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Eval batch norm as s x + d, both float64 (C,): s = gamma / sqrt(var + eps), d = beta - s mean."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - scale * norm.running_mean.double()


@dataclass(frozen=True)
class FoldedDCGAN:
    """`DCGANGenerator` in eval mode: G(z, label) = tanh(up2(relu(up1(relu(W z + bias[label])))))."""

    weight: ops.PackedWeight  # (base_size^2 C0, latent_dim), rows in the order H W C
    class_bias: Tensor  # (num_classes or 1, base_size^2 C0)
    base_size: int
    kernel1: ops.PackedWeight
    bias1: Tensor
    kernel2: ops.PackedWeight
    bias2: Tensor

    def __call__(self, z: Tensor, label: Tensor | None) -> Tensor:
        bias = self.class_bias if label is None else self.class_bias[label]
        h = F.relu(ops.linear(z, self.weight) + bias)
        h = h.unflatten(1, (self.base_size, self.base_size, -1)).permute(0, 3, 1, 2)
        h = ops.conv_transpose2d(h, self.kernel1, self.bias1, stride=2, padding=1, act="relu")
        return ops.conv_transpose2d(h, self.kernel2, self.bias2, stride=2, padding=1, act="tanh").contiguous()


@dataclass(frozen=True)
class FoldedMLP:
    """`MLPGenerator` in eval mode: linear layers (weight, bias), leaky ReLU between them, tanh at the end.

    With components, the one-hot's columns of the first layer are its bias, a row per component.
    """

    components: int
    first: tuple[ops.PackedWeight, Tensor]  # (width, latent_dim - components); bias (components or 1, width)
    layers: tuple[tuple[ops.PackedWeight, Tensor], ...]
    slope: float
    image_shape: tuple[int, int, int]

    def __call__(self, z: Tensor, label: Tensor | None) -> Tensor:
        weight, bias = self.first
        if self.components:
            bias = bias[choose(z, self.components)]
        h = F.leaky_relu(ops.linear(z[:, self.components :], weight) + bias, self.slope)
        *inner, last = self.layers
        for weight, bias in inner:
            h = ops.linear(h, weight, bias, act="leaky_relu", slope=self.slope)
        return ops.linear(h, *last, act="tanh").unflatten(1, self.image_shape)


@torch.no_grad()
def fold_dcgan(model: DCGANGenerator) -> FoldedDCGAN:
    """Fold both batch norms and the class embedding, in float64, rounded once."""
    size, latent = model.config.base_size, model.config.latent_dim
    scale0, shift0 = norm_scale_shift(model.norm0)
    project = model.project.weight.double().unflatten(0, (-1, size * size))  # C0 HW K
    project = (project * scale0[:, None, None]).transpose(0, 1).flatten(0, 1)  # HW C0, K
    class_bias = shift0.repeat(size * size)[None]
    if model.embed is not None:
        class_bias = class_bias + model.embed.weight.double() @ project[:, latent:].T
    scale1, shift1 = norm_scale_shift(model.norm1)
    up1 = model.up1.weight.double() * scale1[:, None, None]
    assert model.up2.bias is not None
    return FoldedDCGAN(
        weight=ops.pack_linear(project[:, :latent].float()),
        class_bias=class_bias.float(),
        base_size=size,
        kernel1=ops.pack_conv_transpose2d(up1.float(), stride=2),
        bias1=shift1.float(),
        kernel2=ops.pack_conv_transpose2d(model.up2.weight.clone(), stride=2),
        bias2=model.up2.bias.clone(),
    )


@torch.no_grad()
def fold_mlp(model: MLPGenerator) -> FoldedMLP:
    """Fold the one-hot of the component into biases; the other layers are copied."""
    first, *others = model.layers
    k = model.config.components
    bias = first.bias + first.weight[:, :k].T if k else first.bias[None]
    return FoldedMLP(
        components=k,
        first=(ops.pack_linear(first.weight[:, k:].clone()), bias.clone()),
        layers=tuple((ops.pack_linear(layer.weight.clone()), layer.bias.clone()) for layer in others),
        slope=model.config.slope,
        image_shape=model.image_shape,
    )


def fold(model: nn.Module) -> Generate:
    """The sampling form of a generator; it holds its own copy of the weights and no state.

    Raises:
        TypeError: `model` is no generator of `aigc_engine.models.gan`.
    """
    if isinstance(model, DCGANGenerator):
        return fold_dcgan(model)
    if isinstance(model, MLPGenerator):
        return fold_mlp(model)
    raise TypeError(
        f"fold: model {type(model).__name__}, expected a DCGANGenerator or an MLPGenerator; "
        "load one from the zoo or build it from aigc_engine.models.gan"
    )
