"""`accelerate(quantize="int8")`: what becomes integers, how far off that is, and what follows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_engine import accelerate, ops
from tests.test_accelerate import eager, randomised

pytestmark = pytest.mark.usefixtures("seeded")
DTYPES = [torch.float32, torch.bfloat16]


class Denoiser(nn.Module):
    """A convolution, a layer over pixels, one over the prompt, and one to few channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pixels = nn.Conv2d(64, 64, 3, padding=1), nn.Linear(64, 64)
        self.prompt, self.few = nn.Linear(64, 64), nn.Conv2d(64, 4, 1)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        h = F.silu(self.conv(x))
        h = self.pixels(h.permute(0, 2, 3, 1)) + self.prompt(prompt)[:, None, None]
        return self.few(h.permute(0, 3, 1, 2))


def arguments(dtype: torch.dtype, batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 64, 6, 5, dtype=dtype), torch.randn(batch, 64, dtype=dtype)


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_about_one_percent_off(dtype: torch.dtype) -> None:
    model = randomised(Denoiser()).to(dtype)
    x = arguments(dtype)
    fast = accelerate(model, quantize="int8", strict=True)
    assert 0.001 < relative(fast(*x), eager(model, *x)) < 0.03


def test_explain_says_which_weights_are_integers_and_how_far_off() -> None:
    fast = accelerate(randomised(Denoiser()), quantize="int8")
    fast(*arguments(torch.float32))
    lines = [line for line in fast.explain().splitlines() if "conv" in line or "linear" in line]
    (first, pixels) = (line for line in lines if "int8" in line)
    assert "conv2d" in first and "linear" in pixels and "% off" in first
    assert len(lines) == 4  # the prompt's and the one to few channels keep theirs


def test_a_layer_gives_what_its_op_gives_for_a_quantised_weight() -> None:
    layer = nn.Linear(96, 40).eval()
    x = torch.randn(7, 96)
    with torch.no_grad():
        wanted = ops.linear(x, ops.pack_linear(layer.weight, quantize="int8"), layer.bias)
    assert accelerate(layer, quantize="int8")(x).equal(wanted)


def test_changed_weights_are_quantised_anew() -> None:
    model = randomised(Denoiser())
    x = arguments(torch.float32)
    fast = accelerate(model, quantize="int8")
    fast(*x)
    with torch.no_grad():
        model.conv.weight.mul_(-3.0)
        model.pixels.weight.add_(0.5)
    assert relative(fast(*x), eager(model, *x)) < 0.03
    assert fast(*x).equal(accelerate(model, quantize="int8")(*x))


def test_a_sample_has_the_same_bits_alone_and_in_a_batch() -> None:
    fast = accelerate(randomised(Denoiser()), quantize="int8")
    x, prompt = arguments(torch.float32, batch=3)
    assert fast(x, prompt)[1:2].equal(fast(x[1:2], prompt[1:2]))


def test_unknown_ways_to_quantise_are_refused() -> None:
    with pytest.raises(ValueError, match=r"accelerate: quantize 'int4', expected one of \['int8'\], or None"):
        accelerate(Denoiser().eval(), quantize="int4")


def test_weights_that_are_not_finite_are_refused() -> None:
    model = randomised(Denoiser())
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="non-finite"):
        accelerate(model, quantize="int8")(*arguments(torch.float32))
