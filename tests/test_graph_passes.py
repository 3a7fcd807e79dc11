"""Each pass on the smallest graph that it's for: what was there, what is there then, and the same result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn

from aigc_engine import ops
from aigc_engine.graph.capture import capture
from aigc_engine.graph.fuse import fuse
from tests.fused import ROWS, Net, X, conv, fused, options, targets


def test_what_does_nothing_goes() -> None:
    def body(net, x):
        x = F.dropout(x, 0.5, training=False).contiguous().clone()[:].to(torch.float32) / 1.0
        return net.c(x.transpose(1, 2).transpose(1, 2))

    assert targets(fused(Net(body, c=conv()), X)) == ["conv2d"]


def test_equal_calls_are_made_once() -> None:
    def body(net, x):
        return net.a(F.silu(x)) * net.b(F.silu(x))

    found = fused(Net(body, a=nn.Linear(16, 8), b=nn.Linear(16, 8)), ROWS)
    assert targets(found).count("pointwise") == 1


def test_group_norm_takes_silu() -> None:
    found = fused(Net(lambda net, x: F.silu(net.n(x)), n=nn.GroupNorm(4, 8)), X)
    assert targets(found) == ["group_norm_silu"]


def test_layer_norm_takes_scale_and_shift_of_each_sample() -> None:
    def body(net, x, scale, shift):
        return net.n(x) * (1 + scale[:, None]) + shift[:, None]

    found = fused(
        Net(body, n=nn.LayerNorm(16, elementwise_affine=False)), ROWS, torch.randn(3, 16), torch.randn(3, 16)
    )
    assert targets(found) == ["unsqueeze", "unsqueeze", "layer_norm"]
    assert set(options(found, ops.layer_norm)) == {"eps", "scale", "shift"}


@pytest.mark.parametrize("act", [F.relu, F.silu, F.gelu, torch.tanh, torch.sigmoid, F.leaky_relu])
def test_products_take_activations(act: Callable[..., Tensor]) -> None:
    assert targets(fused(Net(lambda net, x: act(net.c(x)), c=conv()), X)) == ["conv2d"]
    assert targets(fused(Net(lambda net, x: act(net.l(x)), l=nn.Linear(16, 12)), ROWS)) == ["linear"]


def test_conv_takes_time_embedding_and_residual() -> None:
    def body(net, x, e):
        return x + net.c(x) + e[:, :, None, None]

    found = fused(
        Net(lambda net, x, e: F.silu(net.c(x) + e[:, :, None, None]) + x, c=conv()), X, torch.randn(2, 8)
    )
    assert targets(found) == ["conv2d"]
    assert set(options(found, ops.conv2d)) == {"channel_bias", "act", "residual"}
    found = fused(Net(body, c=conv()), X, torch.randn(2, 8))
    assert targets(found)[-1] == "pointwise"  # the residual comes last in the op, so the embedding stays


def test_a_value_read_twice_is_not_fused() -> None:
    def body(net, x):
        y = net.c(x)
        return F.silu(y) + y

    found = fused(Net(body, c=conv()), X)
    assert "act" not in options(found, ops.conv2d)


def test_linear_takes_gate_and_residual() -> None:
    def body(net, x, gate):
        return x + gate[:, None] * net.l(x)

    found = fused(Net(body, l=nn.Linear(16, 16)), ROWS, torch.randn(3, 16))
    assert targets(found) == ["unsqueeze", "linear"]
    assert set(options(found, ops.linear)) == {"gate", "residual"}


def test_conv_takes_padding_upsampling_and_concatenation() -> None:
    def padded(net, x):
        return net.c(F.pad(x, (0, 1, 0, 1)))

    assert targets(fused(Net(padded, c=nn.Conv2d(8, 8, 3, stride=2)), X)) == ["conv2d"]
    found = fused(Net(lambda net, x: net.c(F.interpolate(x, scale_factor=2.0, mode="nearest")), c=conv()), X)
    assert options(found, ops.conv2d) == {"upsample": 2}
    found = fused(Net(lambda net, x, y: net.c(torch.cat([x, y], 1)), c=conv(16)), X, X.flip(0))
    assert targets(found) == ["conv2d"]
    found = fused(
        Net(
            lambda net, x, y: net.c(F.silu(net.n(z := torch.cat([x, y], 1)))) + net.s(z),
            c=conv(16),
            s=conv(16, 8, 1),
            n=nn.GroupNorm(2, 16),
        ),
        X,
        X.flip(0),
    )
    assert targets(found) == ["cat", "group_norm_silu", "conv2d", "conv2d"]


@pytest.mark.parametrize("transposed", [False, True])
def test_batch_norm_folds_into_the_layer_before(transposed: bool) -> None:
    norm = nn.BatchNorm2d(6)
    for tensor in (norm.weight, norm.running_mean, norm.running_var):
        tensor.data.uniform_(0.5, 1.5)
    layer = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, bias=False) if transposed else conv(8, 6)
    found = fused(Net(lambda net, x: F.relu(net.n(net.c(x))), c=layer, n=norm), X)
    assert targets(found) == ["conv_transpose2d" if transposed else "conv2d"]
    alone = fused(Net(lambda net, x: net.n(F.silu(x)), n=nn.BatchNorm2d(8)), X)
    assert targets(alone) == ["pointwise"]


def test_projections_of_one_input_become_one_product() -> None:
    def body(net, x):
        q, k, v = (layer(x).view(3, 5, 2, 8).transpose(1, 2) for layer in (net.q, net.k, net.v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(3, 5, 16)

    found = fused(Net(body, **{name: nn.Linear(16, 16) for name in "qkv"}), ROWS)
    assert targets(found).count("linear") == 1 and targets(found).count("attention") == 1


def test_elementwise_chains_are_one_pass() -> None:
    def body(net, x, y):
        h = torch.sin(x * 2 - y) / (1 + torch.exp(-x))
        return h * h + torch.sigmoid(y[:, :1]).sum(1, keepdim=True)

    found = fused(Net(body), X, X.flip(0))
    assert targets(found) == ["slice", "pointwise", "sum", "pointwise"]
    *_, last = (node for node in found.graph.nodes if node.target is ops.pointwise)
    steps = [step[0] for step in last.args[0]]
    assert sorted(steps) == sorted(["mul", "sub", "sin", "neg", "exp", "add", "div", "mul", "add"])


def test_halves_that_gate_each_other() -> None:
    def geglu(net, x):
        a, b = net.l(x).chunk(2, -1)
        return a * F.gelu(b)

    def swiglu(net, x):
        a, b = net.l(x).split(32, -1)
        return F.silu(a) * b

    for body, act in ((geglu, "geglu"), (swiglu, "swiglu")):
        found = fused(Net(body, l=nn.Linear(16, 64)), ROWS)
        assert targets(found) == ["linear"] and options(found, ops.linear) == {"act": act}


def test_resizing_is_native() -> None:
    def body(net, x):
        y = F.interpolate(x, scale_factor=2.0, mode="nearest") + 1
        return y + F.interpolate(net.c(x), size=y.shape[2:], mode="bilinear")

    found = fused(Net(body, c=conv()), X)
    assert targets(found) == ["resize2d", "conv2d", "resize2d", "pointwise"]


def test_products_of_weights_that_are_computed_in_between_are_merged() -> None:
    def body(net, x):
        parts = [F.linear(x, layer.weight * 2, layer.bias.neg())[..., :5] for layer in (net.a, net.b)]
        return torch.cat(parts, -1)

    found = fused(Net(body, a=nn.Linear(16, 6), b=nn.Linear(16, 7)), ROWS)
    assert targets(found).count("linear") == 1


def spelled_out(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """RMS norm as T5 has it."""
    y = x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + eps)
    return y.to(x.dtype) if weight is None else weight * y.to(weight.dtype)


def test_rms_norm_spelled_out() -> None:
    norm = nn.LayerNorm(16)
    found = fused(Net(lambda net, x: net.l(spelled_out(x, net.n.weight)), n=norm, l=nn.Linear(16, 6)), ROWS)
    assert targets(found) == ["rms_norm", "linear"] and options(found, ops.rms_norm) == {"eps": 1e-6}
    found = fused(Net(lambda net, x: spelled_out(x, eps=1e-3) + 1), ROWS)
    assert targets(found) == ["rms_norm", "pointwise"]
    for other in (
        lambda net, x: x * torch.rsqrt(x.pow(2).mean(0, keepdim=True) + 1e-6),
        lambda net, x: (x + 1) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda net, x: x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + 1e-6),
    ):
        assert "rms_norm" not in targets(fused(Net(other), ROWS))


def test_conditions_of_sizes_are_constants() -> None:
    def causal(net, x):
        places = torch.arange(x.shape[1])
        masked = torch.where(places[:, None] >= places, x @ x.transpose(1, 2), -1e9)
        return torch.where(torch.zeros_like(places).bool(), torch.ones(1), masked)

    found = fused(Net(causal), ROWS)
    assert "where" not in targets(found) and targets(found).count("pointwise") == 2
    assert "where" in targets(fused(Net(lambda net, x: torch.where(x > 0, x, 0.5)), ROWS))


def test_mish_is_a_program() -> None:
    x = torch.cat([torch.linspace(-30, 30, 400), torch.tensor([-1e4, -90.0, 90.0, 1e4])])[:, None]
    found = fused(Net(lambda net, x: F.mish(x)), x)
    assert targets(found) == ["pointwise"]
    (node,) = (node for node in found.graph.nodes if node.target is ops.pointwise)
    truth = F.mish(x.double())
    assert ((ops.pointwise(node.args[0], x).double() - truth).abs() <= 1e-6 * truth.abs()).all()


def test_repeats_are_views() -> None:
    for repeats, axis in ((3, 0), (2, -1)):
        found = fused(Net(lambda net, x, n=repeats, a=axis: x.repeat_interleave(n, a) * 2), ROWS)
        assert "repeat_interleave" not in targets(found)
    found = fused(Net(lambda net, x, y: x.repeat_interleave(y.shape[0], 1) * 2), ROWS, X)
    assert "repeat_interleave" not in targets(found)


def test_tables_are_native() -> None:
    found = fused(Net(lambda net, i: net.e(i) * 2, e=nn.Embedding(5, 8, padding_idx=1)), torch.tensor([4, 1]))
    assert targets(found) == ["embedding", "pointwise"]


def test_rearrangements_are_views() -> None:
    found = fused(Net(lambda net, x: F.pixel_shuffle(net.c(F.pixel_unshuffle(x, 2)), 2), c=conv(32, 32)), X)
    assert {"pixel_shuffle", "pixel_unshuffle"}.isdisjoint(targets(found))
    found = fused(
        Net(
            lambda net, x: torch.einsum("bchw->bhwc", x) + torch.stack([x, x], -1).sum(-1).permute(0, 2, 3, 1)
        ),
        X,
    )
    assert {"einsum", "stack"}.isdisjoint(targets(found))


def test_convolutions_of_other_ranks_are_flat_ones() -> None:
    sound = nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1)
    found = fused(Net(lambda net, x: net.c(x), c=sound), X.flatten(2))
    assert "conv_transpose2d" in targets(found)
    frames = nn.Conv3d(8, 6, (3, 1, 1), padding=(1, 0, 0))
    found = fused(Net(lambda net, x: net.c(x), c=frames), torch.randn(2, 8, 4, 5, 6))
    assert "conv2d" in targets(found)


def test_numbers_are_read_natively() -> None:
    found = fused(Net(lambda net, x, s: x * s + s), X, torch.tensor(2.0, dtype=torch.float64))
    assert targets(found) == ["alias", "pointwise"] and list(found.casts.values()) == [torch.float32]


def test_a_timestep_is_cast_when_it_is_copied_in() -> None:
    def body(net, x, t):
        steps = t[None] * torch.ones(x.shape[0], dtype=t.dtype)
        return x * torch.sin(steps[:, None].float())[:, :, None]

    leaves, spec = pytree.tree_flatten(((ROWS, torch.tensor(500)), {}))
    found = capture(Net(body), leaves, spec)
    fuse(found)
    assert targets(found) == ["unsqueeze", "expand", "unsqueeze", "pointwise", "unsqueeze", "pointwise"]
    assert list(found.casts.values()) == [torch.float32]


def test_sizes_come_after_what_they_are_sizes_of() -> None:
    def body(net, x, y):
        return net.c(F.silu(x)) + y[:, :, None, None, None]

    clip, e = torch.randn(2, 8, 4, 5, 6), torch.randn(2, 6)
    found = fused(Net(body, c=nn.Conv3d(8, 6, (3, 1, 1), padding=(1, 0, 0))), clip, e)
    assert targets(found).index("pointwise") < targets(found).index("conv2d")
