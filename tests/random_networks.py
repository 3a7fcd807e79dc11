"""Small random networks of all kinds of layers, each of which keeps a shape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 16
ACTIVATIONS = (F.silu, F.gelu, F.relu, torch.tanh, torch.sigmoid, torch.sin, F.leaky_relu)


class Layer(nn.Module):
    """One of many things that keep (B, 16, H, W), with its weights.

    Args:
        kind: which of KINDS.
        more: what else varies: the activation, the taps, an axis.
    """

    def __init__(self, kind: str, more: int) -> None:
        super().__init__()
        self.kind, self.more = kind, more
        self.act = ACTIVATIONS[more % len(ACTIVATIONS)]
        taps = (1, 3)[more % 2]
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, taps, padding=taps // 2)
        self.wide = nn.Conv2d(2 * CHANNELS, CHANNELS, 3, padding=1)
        self.grouped = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.down = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(CHANNELS, CHANNELS, 4, stride=2, padding=1)
        self.rows = nn.Conv1d(CHANNELS, CHANNELS, 2 * taps + 1, padding=taps)
        self.frames = nn.Conv3d(CHANNELS, CHANNELS, (3, 1, 1), padding=(1, 0, 0))
        self.video = nn.Conv3d(CHANNELS, CHANNELS, (2, 3, 3), padding=(0, 1, 1))
        self.linear = nn.Linear(CHANNELS, 2 * CHANNELS)
        self.qkv = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.embed = nn.Embedding(10, CHANNELS)
        self.group, self.batch = nn.GroupNorm(4, CHANNELS), nn.BatchNorm2d(CHANNELS)
        self.layer = nn.LayerNorm(CHANNELS)
        self.scale = nn.Parameter(torch.randn(CHANNELS, 1, 1))

    def forward(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        return getattr(self, self.kind)(x, earlier, labels, t)

    def convolve(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        return self.act(self.conv(x))

    def residual(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        return earlier + self.conv(self.act(self.group(x)))

    def skip(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        both = torch.cat([x, earlier], 1)
        return self.wide(both) + self.wide(both * 0.5)

    def normalise(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        return self.act(self.batch(self.conv(x))) * torch.sigmoid(earlier)

    def tokens(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        h = self.layer(x.flatten(2).transpose(1, 2))
        a, b = self.linear(h).chunk(2, dim=-1)
        return (a * self.act(b)).transpose(1, 2).reshape(x.shape) + x

    def attend(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        B, C, H, W = x.shape
        h, other = (value.permute(0, 2, 3, 1).reshape(B, H * W, C) for value in (x, earlier))
        q, k, v = (
            layer(value).view(B, -1, 2, C // 2).transpose(1, 2)
            for layer, value in zip(self.qkv, (h, other, other), strict=True)
        )
        mask = None if self.more % 2 else (q @ k.transpose(-1, -2) > -1) | torch.eye(H * W, dtype=torch.bool)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(B, H, W, C)
        return h.permute(0, 3, 1, 2) + earlier

    def scores(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        q, k, v = (layer(x.mean(3).mT) for layer in self.qkv)
        h = torch.softmax(q @ k.transpose(1, 2) * CHANNELS**-0.5, dim=-1) @ v
        return earlier - h.mT.unsqueeze(-1).expand_as(x)

    def resize(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        mode = ("nearest", "bilinear")[self.more % 2]
        return F.avg_pool2d(self.conv(F.interpolate(x, scale_factor=2.0, mode=mode)), 2)

    def down_and_up(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        small = self.act(self.down(F.pad(x, (0, 1, 0, 1))[:, :, :-1, :-1]))
        return self.up(small) + F.interpolate(small, size=x.shape[2:], mode="nearest")

    def broadcast(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)
        return self.conv(x * (1 + scale) - earlier.amax(1, keepdim=True)) / 2 + self.group(earlier)

    def pieces(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        a, b, c, d = x.chunk(4, dim=1)
        e, f = torch.split(earlier, [12, 4], dim=1)
        parts = [torch.exp(-a * a), b.flip(2), torch.where(c > 0, c, d), torch.stack([d, a], 1).sum(1)]
        return torch.cat(parts, 1) + torch.cat([f, e], dim=-3)

    def views(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        shape = x.shape
        h = x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        h = F.pixel_shuffle(F.pixel_unshuffle(h, 2), 2) if self.more % 2 else h[:, ::2].repeat(1, 2, 1, 1)
        h = h.permute(0, 3, 1, 2).contiguous().view(shape[0], -1)[..., : h[0].numel()]
        return h.reshape(shape[0], shape[3], CHANNELS, shape[2]).permute(0, 2, 3, 1) * earlier[:, :1]

    def places(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        rows, columns = torch.arange(x.shape[2]), torch.arange(x.shape[3]) * 0.1
        wave = (
            torch.sin(rows[:, None] * columns)
            + torch.arange(x.shape[3])[None].expand(x.shape[2], -1) / x.shape[3]
        )
        return torch.addcmul(x, earlier, wave) * torch.ones_like(x).tril().add(1)

    def lines(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        B, C, H, W = x.shape
        h = self.act(self.rows(x.permute(0, 2, 1, 3).reshape(B * H, C, W)))
        h = h[..., :W].reshape(B, H, C, W).permute(0, 2, 1, 3)
        if self.more % 2:
            return h + self.frames(earlier.unsqueeze(2)).squeeze(2)
        return self.act(self.video(torch.stack([earlier, h], 2))).squeeze(2)

    def conditioned(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        e = self.embed(labels) + torch.cos(t.float()[:, None] * torch.arange(CHANNELS))
        scale, shift = self.linear(self.act(e)).chunk(2, dim=1)
        h = self.conv(self.group(x)) + e[:, :, None, None]
        return h * (1 + scale[:, :, None, None]) + shift[..., None, None]

    def in_place(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        h = self.grouped(x).mul_(self.scale).add_(earlier, alpha=0.5)
        h[:, :, 0] = 0.25
        h[:, 2:4].mul_(torch.where(labels > 4, -1.0, 2.0)[:, None, None, None])
        h.masked_fill_(earlier > 1, 0.5).clamp_(-2, 2)
        return F.relu(h, inplace=True) if self.more % 3 else h

    def statistics(self, x: Tensor, earlier: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        h = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-3).sqrt()
        picked = earlier.gather(
            1, (labels[:, None, None, None] + torch.arange(16)[:, None, None]).expand_as(x) % 16
        )
        return F.normalize(h, dim=1) + picked.clamp(min=-1) + torch.cumsum(x, self.more % 4) * 0.1


KINDS = tuple(name for name in vars(Layer) if not name.startswith("_") and name != "forward")


class Network(nn.Module):
    """Layers, each of which sees the one before it and an earlier one.

    Args:
        layers: the kind of each, how far back it looks, and what else varies.
    """

    def __init__(self, layers: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.layers = nn.ModuleList(Layer(kind, more) for kind, _, more in layers)
        self.back = [back for _, back, _ in layers]

    def forward(
        self, x: Tensor, labels: Tensor, t: Tensor | float, *, context: Tensor | None = None
    ) -> dict[str, object]:
        steps = torch.as_tensor(t).reshape(-1).expand(x.shape[0])
        values = [self.first(x)]
        for layer, back in zip(self.layers, self.back, strict=True):
            values.append(layer(values[-1], values[-1 - back % len(values)], labels, steps))
        last = values[-1] if context is None else values[-1] + context.mean(1)[:, :, None, None]
        return {
            "sample": last,
            "all": (values[0], [value[:, :1] for value in values[1:]], labels + 1),
            "t": None,
        }
