"""Weights that plans have folded, merged or laid out in another way follow the module's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_engine import accelerate
from aigc_engine.graph.constants import Constants
from tests.test_accelerate import close, eager, randomised

pytestmark = pytest.mark.usefixtures("seeded")


def test_folded_and_merged_weights_follow_their_sources() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
            return self.a(h).view(h.shape[0], -1, 2, 4) * self.b(h).view(h.shape[0], -1, 2, 4)

    model = randomised(Folded())
    fast, x = accelerate(model), torch.randn(2, 3, 6, 6)
    close(fast(x), eager(model, x))
    with torch.no_grad():
        model.norm.running_var.mul_(2.0)
        model.b.bias.add_(1.0)
    close(fast(x), eager(model, x))


def test_weights_that_are_laid_out_again_follow_too() -> None:
    one = nn.ConvTranspose2d(8, 16, 4, bias=False)  # by taps
    square, few = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 1, 3, padding=1)  # Winograd's, by blocks
    model = randomised(nn.Sequential(one, nn.BatchNorm2d(16), nn.ReLU(), square, few))
    x = torch.randn(2, 8, 1, 1)
    fast = accelerate(model, strict=True)
    close(fast(x), eager(model, x))
    with torch.no_grad():
        model[0].weight.mul_(-1.0)
        model[1].running_mean.add_(1.0)
        model[3].weight.mul_(2.0)
        model[4].weight.mul_(-3.0)
    close(fast(x), eager(model, x))


def test_packed_weights_are_computed_once_and_their_plain_values_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Linear(64, 8)
    fast = accelerate(randomised(nn.Sequential(*layers)), dtype=torch.bfloat16)
    fast(torch.randn(2, 8))
    (graph,) = fast._graphs
    assert not [value for value in graph.constants._derived.values() if value.numel() > 64]
    monkeypatch.setattr(Constants, "_compute", None)
    fast(torch.randn(5, 8))
