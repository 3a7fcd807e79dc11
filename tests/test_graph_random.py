"""Small random networks: whatever they're made of, the plan gives what eager gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aigc_engine import accelerate

CHANNELS = 16
ACTIVATIONS = (F.silu, F.gelu, F.relu, torch.tanh, torch.sigmoid, torch.sin, torch.abs)


class Layer(nn.Module):
    """One of many things that keep (B, 16, H, W), with its weights."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, (1, 3)[kind % 2], padding=kind % 2)
        self.wide = nn.Conv2d(2 * CHANNELS, CHANNELS, 3, padding=1)
        self.linear = nn.Linear(CHANNELS, 2 * CHANNELS)
        self.qkv = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.group, self.batch, self.layer = (
            nn.GroupNorm(4, CHANNELS),
            nn.BatchNorm2d(CHANNELS),
            nn.LayerNorm(CHANNELS),
        )

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:
        return getattr(self, KINDS[self.kind])(x, earlier)

    def convolve(self, x: Tensor, earlier: Tensor) -> Tensor:
        return ACTIVATIONS[self.kind % 7](self.conv(x))

    def residual(self, x: Tensor, earlier: Tensor) -> Tensor:
        return earlier + self.conv(F.silu(self.group(x)))

    def skip(self, x: Tensor, earlier: Tensor) -> Tensor:
        both = torch.cat([x, earlier], 1)
        return self.wide(both) + self.wide(both * 0.5)

    def normalise(self, x: Tensor, earlier: Tensor) -> Tensor:
        return F.relu(self.batch(self.conv(x))) * torch.sigmoid(earlier)

    def tokens(self, x: Tensor, earlier: Tensor) -> Tensor:
        h = self.layer(x.flatten(2).transpose(1, 2))
        a, b = self.linear(h).chunk(2, dim=-1)
        return (a * F.gelu(b)).transpose(1, 2).reshape(x.shape) + x

    def attend(self, x: Tensor, earlier: Tensor) -> Tensor:
        B, C, H, W = x.shape
        h = x.permute(0, 2, 3, 1).reshape(B, H * W, C)
        q, k, v = (layer(h).view(B, -1, 2, C // 2).transpose(1, 2) for layer in self.qkv)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, H, W, C)
        return h.permute(0, 3, 1, 2) + earlier

    def resize(self, x: Tensor, earlier: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")), 2)

    def broadcast(self, x: Tensor, earlier: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)
        return self.conv(x * (1 + scale) - earlier.amax(1, keepdim=True)) / 2 + self.group(earlier)

    def pieces(self, x: Tensor, earlier: Tensor) -> Tensor:
        a, b, c, d = x.chunk(4, dim=1)
        return torch.cat(
            [torch.exp(-a * a), b.flip(2), torch.where(c > 0, c, d), torch.stack([d, a], 1).sum(1)], 1
        )


KINDS = (
    "convolve",
    "residual",
    "skip",
    "normalise",
    "tokens",
    "attend",
    "resize",
    "broadcast",
    "pieces",
    "convolve",
)


class Network(nn.Module):
    """Layers, each of which sees the one before it and an earlier one."""

    def __init__(self, kinds: list[tuple[int, int]]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.layers = nn.ModuleList(Layer(kind) for kind, _ in kinds)
        self.back = [back for _, back in kinds]

    def forward(self, x: Tensor) -> Tensor:
        values = [self.first(x)]
        for layer, back in zip(self.layers, self.back, strict=True):
            values.append(layer(values[-1], values[-1 - back % len(values)]))
        return values[-1]


@pytest.mark.filterwarnings("ignore:accelerate. .* run through torch:RuntimeWarning")
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    kinds=st.lists(st.tuples(st.integers(0, len(KINDS) - 1), st.integers(0, 3)), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_random_networks(kinds: list[tuple[int, int]], seed: int) -> None:
    torch.manual_seed(seed)
    model = Network(kinds).eval()
    fast = accelerate(model)
    for shape in ((2, 3, 4, 6), (1, 3, 6, 4)):
        x = torch.randn(shape)
        with torch.no_grad():
            wanted = model(x)
        got = fast(x)
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5 * wanted.abs().max().item())
