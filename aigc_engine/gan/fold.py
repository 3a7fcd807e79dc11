"""Generators in the form that samples fastest: batch norms and class embedding folded into the weights.

Every form computes a row with the same bits in every batch: linear layers by blocks of rows, transposed
convolutions as channels-last convolutions (torch's `conv_transpose2d` rounds by batch size and threads).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_engine.models.gan import DCGANGenerator, MLPGenerator, choose
from aigc_engine.models.layers import channels_last, rowwise_linear

Generate = Callable[[Tensor, Tensor | None], Tensor]


def norm_scale_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Eval batch norm as s x + d, both float64 (C,): s = gamma / sqrt(var + eps), d = beta - s mean."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - scale * norm.running_mean.double()


def subpixel_kernel(weight: Tensor) -> Tensor:
    """Weights of a 4x4, stride 2, padding 1 transposed convolution as those of a 2x2 convolution.

    Output row 2p - 1 takes input rows p - 1 and p by taps 2 and 0, row 2p takes them by taps 3 and 1; columns
    alike. So a 2x2 convolution gives all four outputs that start at the corner (p, q), in 4 C channels.

    Args:
        weight: (I, C, 4, 4).
    Returns:
        (4 C, I, 2, 2), channels-last; channel (2 a + c) C + k is row parity a, column parity c of output k.
    """
    taps = torch.tensor([[3, 1], [2, 0]])
    kernel = weight[:, :, taps][:, :, :, :, taps]  # I C a d c e
    return channels_last(kernel.permute(2, 4, 1, 0, 3, 5).flatten(0, 2))


def subpixel_conv_transpose(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """The transposed convolution of `subpixel_kernel`: x (B, I, H, W) -> (B, C, 2 H, 2 W), channels-last.

    References:
        Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016,
        https://arxiv.org/abs/1609.07009

    Args:
        x: channels-last, B >= 2 (a lone row would leave oneDNN's convolution and round differently).
        kernel: (4 C, I, 2, 2).
        bias: (4 C,), the bias of each output channel four times.
    """
    B, _, H, W = x.shape
    C = kernel.shape[0] // 4
    corners = F.conv2d(x, kernel, bias, padding=1).permute(0, 2, 3, 1).unflatten(3, (2, 2, C))
    out = x.new_empty(B, H, 2, W, 2, C)
    for a in (0, 1):
        for c in (0, 1):
            out[:, :, a, :, c] = corners[:, a : a + H, c : c + W, a, c]
    return out.view(B, 2 * H, 2 * W, C).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class FoldedDCGAN:
    """`DCGANGenerator` in eval mode: G(z, label) = tanh(up2(relu(up1(relu(W z + bias[label])))))."""

    weight: Tensor  # (base_size^2 C0, latent_dim), rows in the order H W C
    class_bias: Tensor  # (num_classes or 1, base_size^2 C0)
    base_size: int
    kernel1: Tensor
    bias1: Tensor
    kernel2: Tensor
    bias2: Tensor

    def __call__(self, z: Tensor, label: Tensor | None) -> Tensor:
        if z.shape[0] == 1:
            return self(z.expand(2, -1), None if label is None else label.expand(2))[:1]
        bias = self.class_bias if label is None else self.class_bias[label]
        h = F.relu(rowwise_linear(z, self.weight) + bias)
        h = h.unflatten(1, (self.base_size, self.base_size, -1)).permute(0, 3, 1, 2)
        h = F.relu(subpixel_conv_transpose(h, self.kernel1, self.bias1))
        return torch.tanh(subpixel_conv_transpose(h, self.kernel2, self.bias2).contiguous())


@dataclass(frozen=True)
class FoldedMLP:
    """`MLPGenerator` in eval mode: linear layers (weight, bias), leaky ReLU between them, tanh at the end.

    With components, the one-hot's columns of the first layer are its bias, a row per component.
    """

    components: int
    first: tuple[Tensor, Tensor]  # weight (width, latent_dim - components), bias (components or 1, width)
    layers: tuple[tuple[Tensor, Tensor], ...]
    slope: float
    image_shape: tuple[int, int, int]

    def __call__(self, z: Tensor, label: Tensor | None) -> Tensor:
        weight, bias = self.first
        if self.components:
            bias = bias[choose(z, self.components)]
        h = rowwise_linear(z[:, self.components :], weight) + bias
        for weight, bias in self.layers:
            h = rowwise_linear(F.leaky_relu(h, self.slope), weight, bias)
        return torch.tanh(h).unflatten(1, self.image_shape)


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
    assert model.up2.bias is not None
    return FoldedDCGAN(
        weight=project[:, :latent].float().contiguous(),
        class_bias=class_bias.float(),
        base_size=size,
        kernel1=subpixel_kernel((model.up1.weight.double() * scale1[:, None, None]).float()),
        bias1=shift1.float().repeat(4),
        kernel2=subpixel_kernel(model.up2.weight.detach()),
        bias2=model.up2.bias.detach().repeat(4),
    )


@torch.no_grad()
def fold_mlp(model: MLPGenerator) -> FoldedMLP:
    """Fold the one-hot of the component into biases; the other layers are copied."""
    first, *others = model.layers
    k = model.config.components
    bias = first.bias + first.weight[:, :k].T if k else first.bias[None]
    return FoldedMLP(
        components=k,
        first=(first.weight[:, k:].clone(), bias.clone()),
        layers=tuple((layer.weight.clone(), layer.bias.clone()) for layer in others),
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
