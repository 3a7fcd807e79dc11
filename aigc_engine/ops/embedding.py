"""Rows of a table, by number."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.ops import checks
from aigc_engine.testing import Sample

INDICES = frozenset({torch.int64, torch.int32})


def _check_embedding(indices: Tensor, weight: Tensor) -> None:
    checks.tensor("embedding", "indices", indices)
    if indices.dtype not in INDICES:
        raise TypeError(
            f"embedding: indices {indices.dtype}, expected torch.int64 or torch.int32; convert them"
        )
    checks.floating("embedding", "weight", weight)
    checks.rank("embedding", "weight", weight, 2, 2)
    if weight.device != indices.device:
        raise ValueError(
            f"embedding: weight on {weight.device}, expected {indices.device} as indices; move one of them"
        )


def _samples_embedding(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)

    def rows(count: int, *shape: int) -> Tensor:
        return torch.randint(count, shape, generator=g).to(device, dtype)

    for kind in (torch.float32, torch.bfloat16):
        table = torch.randn(13, 1000, generator=g).to(device, kind)
        for D in (1, 15, 16, 17, 31, 33, 64, 1000):
            yield Sample(f"width_{D}_{kind}", (rows(13, 5, 3), table[:, :D].contiguous()), batch_axis=0)
        yield Sample(f"scalar_{kind}", (rows(13), table))
        yield Sample(f"one_row_{kind}", (rows(1, 70), table[:1]))
        yield Sample(f"many_{kind}", (rows(13, 2100), table[:, :40].contiguous()), batch_axis=0)
        yield Sample(f"ends_{kind}", (torch.tensor([0, 12, 12, 0]).to(device, dtype), table))
        yield Sample(f"strided_{kind}", (rows(6, 6, 8)[:, 1::2].t(), table[1::2, ::3][:, 1:]))
        yield Sample(f"no_indices_{kind}", (rows(13, 0, 4), table))
        yield Sample(f"no_width_{kind}", (rows(13, 4), table[:, :0]))
    names = ("clip_text_77_tokens", (2, 77), (49408, 768)), ("t5_text_512_tokens", (1, 512), (32128, 4096))
    for name, shape, table_shape in names:
        yield Sample(name, (rows(table_shape[0], *shape), torch.randn(table_shape, generator=g)), bench=True)


def _cost_embedding(indices: Tensor, weight: Tensor) -> tuple[float, float]:
    """Copies: each index and row read once, each row written once."""
    row = weight.shape[1] * weight.element_size()
    return 0.0, float(indices.numel() * (indices.element_size() + 2 * row))


@op(
    check=_check_embedding,
    samples=_samples_embedding,
    dtypes=INDICES,
    cost=_cost_embedding,
    exact=True,
)
def embedding(indices: Tensor, weight: Tensor) -> Tensor:
    r"""Looks up rows of a table, as `F.embedding(indices, weight)` does.

    .. math:: y_{i} = W_{\text{indices}_i}

    References:
        Y. Bengio et al., "A Neural Probabilistic Language Model", JMLR 3, 2003,
        https://www.jmlr.org/papers/v3/bengio03a.html (the table of words' vectors)

    Args:
        indices: (...) int64 or int32, each 0 to V - 1.
        weight: (V, D) floating, the table W.

    Returns:
        (..., D) in weight's dtype, contiguous.

    Precision: exact; rows are copied.

    Raises:
        TypeError: indices aren't int64 or int32, weight isn't floating.
        ValueError: weight isn't (V, D), or is on another device.
        IndexError: an index is below 0 or above V - 1; of a plan when it runs.
    """
    try:
        return F.embedding(indices, weight)
    except IndexError:
        wrong = indices[(indices < 0) | (indices >= len(weight))][0].item()
        raise IndexError(
            f"embedding: indices has {wrong}, expected 0 to {len(weight) - 1}, the rows of weight; look at "
            "where they come from"
        ) from None
