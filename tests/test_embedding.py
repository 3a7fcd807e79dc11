"""What the generated parity tests don't say of embedding: bad input and bad indices, in plans too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from aigc_engine import accelerate, sample
from aigc_engine.dispatch import use_backend
from aigc_engine.ops import embedding

TABLE = torch.arange(12.0).view(4, 3)
BACKENDS = pytest.mark.parametrize("backend", ["native", "reference"])


@BACKENDS
@pytest.mark.parametrize(
    ("indices", "weight", "kind", "message"),
    [
        ([0], TABLE, TypeError, "embedding: indices list, expected a torch.Tensor"),
        (torch.zeros(2), TABLE, TypeError, "indices torch.float32, expected torch.int64 or torch.int32"),
        (torch.tensor([0]), TABLE.long(), TypeError, "weight torch.int64, expected a floating dtype"),
        (torch.tensor([0]), TABLE[0], ValueError, "weight has 1 dimensions, expected 2"),
        (torch.tensor([0]), TABLE.to("meta"), ValueError, "weight on meta, expected cpu as indices"),
    ],
)
def test_bad_input(
    backend: str, indices: Tensor, weight: Tensor, kind: type[Exception], message: str
) -> None:
    with use_backend(backend), pytest.raises(kind, match=message):
        embedding(indices, weight)


@BACKENDS
@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
@pytest.mark.parametrize("wrong", [-1, 4, 2**31 - 1, -(2**31)])
def test_indices_beyond_the_table(backend: str, kind: torch.dtype, wrong: int) -> None:
    indices = torch.tensor([[0, 3], [wrong, 1]], dtype=kind)
    with (
        use_backend(backend),
        pytest.raises(IndexError, match=f"embedding: indices has {wrong}, expected 0 to 3, the rows of"),
    ):
        embedding(indices, TABLE)


@BACKENDS
def test_every_floating_table(backend: str) -> None:
    indices = torch.tensor([3, 0], dtype=torch.int32)
    for kind in (torch.float16, torch.float64, torch.bfloat16):
        with use_backend(backend):
            assert torch.equal(embedding(indices, TABLE.to(kind)), TABLE.to(kind)[[3, 0]])


class Labelled(nn.Module):
    """An image's layer, and a label of many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(4, 3, padding_idx=0)
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.layer(x) + self.label(label)


@pytest.mark.usefixtures("seeded")
def test_a_plan_never_reads_beyond_the_table() -> None:
    model = Labelled().eval()
    fast, x, label = accelerate(model, strict=True), torch.randn(2, 3), torch.tensor([3, 0])
    with torch.no_grad():
        wanted = model(x, label)
    torch.testing.assert_close(fast(x, label), wanted)
    for wrong in (-1, 4, 2**40):
        with pytest.raises(IndexError, match=f"embedding: indices has {wrong}, expected 0 to 3"):
            fast(x, torch.tensor([0, wrong]))
    torch.testing.assert_close(fast(x, label), wanted)  # what it held before the error isn't taken for new
    torch.testing.assert_close(fast(x.bfloat16().float(), label.int()), model(x.bfloat16().float(), label))
    with torch.no_grad():
        model.label.weight.mul_(2.0)  # followed in place
        torch.testing.assert_close(fast(x, label), model(x, label))


@pytest.mark.usefixtures("seeded")
def test_a_bad_label_ends_a_sampler_s_loop() -> None:
    class Denoiser(Labelled):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            return super().forward(x, cond) * t[:, None]

    fast = accelerate(Denoiser().eval())
    options = {"solver": "ddim", "steps": 3, "schedule": "scaled_linear"}
    sample(fast, (2, 3), cond=torch.tensor([1, 3]), **options)
    with pytest.raises(IndexError, match="embedding: indices has 4, expected 0 to 3"):
        sample(fast, (2, 3), cond=torch.tensor([1, 4]), **options)
