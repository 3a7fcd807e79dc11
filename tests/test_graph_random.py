"""Small random networks: whatever they're made of, the plan gives what eager gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from aigc_engine import accelerate
from tests.random_networks import CHANNELS, KINDS, Network

LAYERS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=4
)


def arguments(
    batch: int, height: int, width: int, context: bool, number: bool
) -> tuple[tuple, dict[str, Any]]:
    t = 3 + height if number else torch.randint(0, 1000, (batch,))
    more = {"context": torch.randn(batch, batch + 3, CHANNELS)} if context else {}
    return (torch.randn(batch, 3, height, width), torch.randint(0, 10, (batch,)), t), more


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:accelerate. .* run through torch:RuntimeWarning")
@pytest.mark.timeout(3600)
@given(layers=LAYERS, seed=st.integers(0, 1000), context=st.booleans(), number=st.booleans())
def test_random_networks(layers: list[tuple[str, int, int]], seed: int, context: bool, number: bool) -> None:
    torch.manual_seed(seed)
    model = nonzero(Network(layers))
    fast = accelerate(model)
    for shape in ((2, 4, 6), (1, 6, 4)):
        args, kwargs = arguments(*shape, context, number)
        with torch.no_grad():
            wanted = model(*args, **kwargs)
        equal(fast(*args, **kwargs), wanted)
    assert len(fast._graphs) == 1


def nonzero(model: nn.Module) -> nn.Module:
    """Running means and variances as after training."""
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def equal(got: Any, wanted: Any) -> None:
    (a, spec), (b, other) = pytree.tree_flatten(got), pytree.tree_flatten(wanted)
    assert spec == other
    for x, y in zip(a, b, strict=True):
        if isinstance(y, torch.Tensor) and y.is_floating_point():
            torch.testing.assert_close(x, y, rtol=1e-4, atol=2e-5 * y.abs().max().item())
        else:
            torch.testing.assert_close(x, y, rtol=0, atol=0)
