"""The models on digits: a row has the same bits in every batch, and each part of the input matters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from aigc_engine.models.classifier import Classifier
from aigc_engine.models.layers import rowwise_linear, rowwise_silu, timestep_embedding
from aigc_engine.models.unet import UNet
from aigc_engine.models.vae import VAE

COUNTS = (1, 2, 3, 5, 8, 33)


def perturbed(model: nn.Module) -> nn.Module:
    """Weights as after training: nothing is left at zero or one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval().requires_grad_(False)


def unet_case() -> tuple[Callable[..., Tensor], list[Tensor]]:
    t = torch.arange(33) * 31.0
    return perturbed(UNet()), [torch.randn(33, 1, 28, 28), t, torch.arange(33) % 11]


def encode_case() -> tuple[Callable[..., Tensor], list[Tensor]]:
    model = perturbed(VAE())
    return lambda x: torch.cat(model.encode(x), dim=1), [torch.randn(33, 1, 28, 28)]


CASES: dict[str, Callable[[], tuple[Callable[..., Tensor], list[Tensor]]]] = {
    "unet": unet_case,
    "vae_encode": encode_case,
    "vae_decode": lambda: (perturbed(VAE()).decode, [torch.randn(33, 16)]),
    "vae_reconstruct": lambda: (perturbed(VAE()), [torch.randn(33, 1, 28, 28)]),
    "classifier": lambda: (perturbed(Classifier()), [torch.randn(33, 1, 28, 28)]),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_rows_do_not_depend_on_the_batch(case: str) -> None:
    torch.manual_seed(0)
    model, inputs = CASES[case]()
    whole = model(*inputs)
    assert whole.std() > 1e-3
    for n in COUNTS:
        part = model(*(x[:n] for x in inputs))
        assert torch.equal(part, whole[:n]), f"{n} rows alone differ from {n} rows of 33"
    for row in (1, 17, 32):
        assert torch.equal(model(*(x[row : row + 1] for x in inputs)), whole[row : row + 1])


@pytest.mark.parametrize(("width", "out"), [(3, 5), (16, 128), (784, 512), (1024, 256)])
@torch.no_grad()
def test_rowwise_linear(width: int, out: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(64, width), torch.randn(out, width), torch.randn(out)
    whole = rowwise_linear(x, weight, bias)
    torch.testing.assert_close(whole, x @ weight.T + bias, rtol=1e-4, atol=1e-4)
    for n in (1, 2, 3, 5, 7, 16, 17, 63):
        assert torch.equal(rowwise_linear(x[:n], weight, bias), whole[:n])
    assert rowwise_linear(x[:0], weight, bias).shape == (0, out)


def test_rowwise_silu() -> None:
    x = torch.linspace(-30, 30, 1001)
    expected = x.double() * torch.sigmoid(x.double())
    torch.testing.assert_close(rowwise_silu(x).double(), expected, rtol=1e-5, atol=1e-6)


def test_timestep_embedding() -> None:
    e = timestep_embedding(torch.tensor([0.0, 999.0]), 8)
    assert torch.equal(e[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    torch.testing.assert_close(e[1, 0].double(), torch.tensor(999.0).double().cos(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(e[1, 7].double(), torch.tensor(0.999).double().sin(), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_unet_sees_time_and_class_and_no_label_is_the_null_label() -> None:
    model = perturbed(UNet())
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([10.0, 900.0])
    none = model(x, t)
    assert torch.equal(none, model(x, t, torch.tensor([10, 10])))
    assert not torch.equal(none, model(x, t, torch.tensor([3, 3])))
    assert not torch.equal(none, model(x, t.flip(0)))
    assert none.shape == x.shape and none.dtype == torch.float32


def test_an_untrained_unet_predicts_its_bias_so_that_training_starts_calm() -> None:
    out = UNet().eval()(torch.randn(2, 1, 28, 28), torch.zeros(2))
    assert out.std() < 0.2


def test_other_sizes_build_and_keep_the_shape() -> None:
    model = UNet(channels=3, image_size=24, patch=1, widths=(8, 16, 16), depths=(1, 2, 1), groups=4, heads=2)
    x = torch.randn(2, 3, 24, 24)
    assert model(x, torch.zeros(2), torch.zeros(2, dtype=torch.int64)).shape == x.shape
    vae = VAE(channels=3, image_size=16, latent=5, widths=(4, 8))
    assert vae(torch.randn(2, 3, 16, 16)).shape == (2, 3, 16, 16)
    assert vae.decode(torch.randn(2, 5)).abs().max() <= 1


def test_gradients_reach_every_weight() -> None:
    for model, inputs in (
        (UNet(), (torch.randn(2, 1, 28, 28), torch.zeros(2), torch.tensor([1, 10]))),
        (VAE(), (torch.randn(2, 1, 28, 28),)),
        (Classifier(), (torch.randn(2, 1, 28, 28),)),
    ):
        perturbed(model).requires_grad_(True)
        model(*inputs).square().sum().backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None]
