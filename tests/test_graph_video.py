"""Passes for what networks of video do, as tests/test_graph_passes.py has them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from aigc_engine import ops
from tests.fused import Net, X, conv, fused, options, targets


def test_a_volume_takes_its_padding_activation_and_residual() -> None:
    def causal(net, x):
        return F.silu(net.n(net.c(F.pad(x, (1, 1, 1, 1, 2, 0))))) + x

    found = fused(Net(causal, c=nn.Conv3d(8, 8, 3), n=nn.BatchNorm3d(8)), torch.randn(2, 8, 4, 5, 6))
    assert targets(found) == ["conv3d"]
    assert set(options(found, ops.conv3d)) == {"act", "residual"}
    (node,) = (node for node in found.graph.nodes if node.target is ops.conv3d)
    assert node.kwargs["padding"] == (1, 1, 1, 1, 2, 0)
    for left in ({"groups": 2}, {"dilation": (2, 1, 1)}):
        found = fused(Net(lambda net, x: net.c(x), c=nn.Conv3d(8, 8, 3, **left)), torch.randn(2, 8, 6, 5, 6))
        assert targets(found) == ["conv3d"]
        assert not [node for node in found.graph.nodes if node.target is ops.conv3d]


def test_video_is_resized_frame_by_frame() -> None:
    clip = torch.randn(2, 8, 3, 5, 6)
    for factors in ((1.0, 2.0, 2.0), (2.0, 2.0, 3.0), 2.0):
        found = fused(Net(lambda net, x, f=factors: F.interpolate(x, scale_factor=f)), clip)
        assert "resize2d" in targets(found) and "upsample_nearest3d" not in targets(found)
    found = fused(Net(lambda net, x: F.interpolate(x, size=(x.shape[2], 7, 9))), clip)
    assert "resize2d" in targets(found)
    found = fused(Net(lambda net, x: F.interpolate(x, scale_factor=2.0, mode="nearest-exact")), X)
    assert targets(found)[-1] == "resize2d"


def test_normalize_is_rms_norm() -> None:
    found = fused(Net(lambda net, x: F.normalize(net.c(x), dim=1) * 3, c=conv()), X)
    assert targets(found) == ["conv2d", "permute", "rms_norm", "permute", "pointwise"]
    found = fused(Net(lambda net, x: F.normalize(net.c(x), dim=1), c=nn.Conv2d(8, 8, 1, bias=False)), 0 * X)
    assert "rms_norm" in targets(found)
    found = fused(Net(lambda net, x: F.normalize(net.c(x), p=1.0, dim=1), c=conv()), X)
    assert "rms_norm" not in targets(found)


def test_other_words_are_plainer_calls() -> None:
    def rotate(net, x, y):
        h = net.c(x)
        out = torch.empty_like(h)
        out[:, 0::2] = h[:, 1::2] * 2
        out[:, 1::2] = -h[:, 0::2]
        return out.type_as(y)

    found = fused(Net(rotate, c=conv()), X, X.flip(0))
    assert {"empty_like", "copy", "slice_scatter", "type_as"}.isdisjoint(targets(found))

    def once(net, x):
        h = net.c(x)
        out = torch.zeros_like(h)
        out[:, 0::2] = h[:, 1::2] * 2
        return out

    assert "slice_scatter" in targets(fused(Net(once, c=conv()), X))
    for pads in ((1, 2, 3, 0), (0, 0, 1, 1)):
        found = fused(Net(lambda net, x, p=pads: F.pad(x, p, mode="replicate")), X)
        assert set(targets(found)) == {"slice", "expand", "cat"}
    found = fused(
        Net(lambda net, x: F.pad(x, (1, 1, 0, 0, 2, 0), mode="replicate")), torch.randn(2, 8, 3, 5, 6)
    )
    assert set(targets(found)) == {"slice", "expand", "cat"}
