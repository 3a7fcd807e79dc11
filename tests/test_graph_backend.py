"""torch.compile with the engine as its backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aigc_engine.graph.backend import compile_graph

pytestmark = [
    pytest.mark.filterwarnings("ignore:accelerate. .* run through torch:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    torch._dynamo.reset()
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(2), nn.LazyLinear(4), nn.GELU()
    ).eval()


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_compiled_modules(model: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        wanted = model(x)
        fast = torch.compile(model, backend=compile_graph)
        close(fast(x), wanted)
        for batch in (3, 5):
            x = torch.randn(batch, 3, 8, 8)
            close(fast(x), model(x))
        model[0].weight.mul_(2.0)
        close(fast(x), model(x))
        model[4].weight = nn.Parameter(torch.randn_like(model[4].weight))
        close(fast(x), model(x))


def test_gradients_run_the_graph_as_it_is(model: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    model(x)
    fast = torch.compile(model, backend=compile_graph)
    (gradient,) = torch.autograd.grad(fast(x).sum(), x)
    (wanted,) = torch.autograd.grad(model(x).sum(), x)
    close(gradient, wanted)


def test_the_backend_has_its_name() -> None:
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    assert 'aigc_engine = "aigc_engine.graph.backend:compile_graph"' in project.read_text(encoding="utf-8")
