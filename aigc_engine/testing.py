"""Sample inputs and the parity rule that every backend of every op is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One input of an op.

    Args:
        name: shape class (`tail_17`) or workload (`sd15_unet_mid`).
        args, kwargs: the op's arguments.
        exact: the answer is exact in float32 (small integers): backends must equal the reference.
        bench: timed by `bench/`, too large for tests; an op yields these last.
        batch_axis: axis of the first tensor along which rows are independent; None where there is none.
            Weights must differ from the batch in that axis' length, so that only batched tensors are cut.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = False
    bench: bool = False
    batch_axis: int | None = None


def map_tensors(value: Any, fn: Any) -> Any:
    """Applies fn to every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(item, fn) for item in value)
    if isinstance(value, dict):
        return {key: map_tensors(item, fn) for key, item in value.items()}
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    found: list[Tensor] = []
    map_tensors(value, found.append)
    return found


def pieces(result: Any) -> list[Tensor]:
    """The tensors an op returned, be it one or several."""
    return list(result) if isinstance(result, (tuple, list)) else [result]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal shapes and values, NaN being equal to itself."""
    return torch.equal(a, b) or (
        a.shape == b.shape
        and torch.equal(a.isnan(), b.isnan())
        and torch.equal(a.nan_to_num(), b.nan_to_num())
    )


def one_row(sample: Sample, row: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The sample's arguments with every tensor that has the batch's rows cut to one of them."""
    axis = sample.batch_axis
    assert axis is not None
    rows = tensors_of(sample.args)[0].shape[axis]

    def cut(t: Tensor) -> Tensor:
        return t.narrow(axis, row, 1) if t.ndim > axis and t.shape[axis] == rows else t

    return map_tensors(sample.args, cut), map_tensors(dict(sample.kwargs), cut)


def clone_layout(x: Tensor) -> Tensor:
    """A copy with the same strides (so that a strided sample stays strided)."""
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=x.device).copy_(x)


def to_float64(value: Any) -> Any:
    """The same inputs with every floating tensor in float64."""
    return map_tensors(value, lambda x: x.double() if x.is_floating_point() else x)


def parity_failure(got: Tensor, reference: Tensor, truth: Tensor, *, slack: float = 1.0) -> str | None:
    """Checks `|got - truth| <= slack (2 max|reference - truth| + eps max|truth|)`.

    The bound is twice the reference's own worst error in that dtype against float64, plus one rounding of the
    result's largest magnitude. Non-finite values must match in place and kind; integer results must be equal.

    Returns:
        None when the rule holds, else a sentence with the worst element.
    """
    if got.shape != reference.shape or got.dtype != reference.dtype:
        return f"got {got.dtype} {tuple(got.shape)}, expected {reference.dtype} {tuple(reference.shape)}"
    if not got.is_floating_point():
        return None if torch.equal(got, reference) else "integer results differ"
    if got.numel() == 0:
        return None
    finite = torch.isfinite(truth)
    if not torch.equal(torch.isfinite(got), finite):
        return "non-finite values differ in place"
    if not torch.equal(got.double()[~finite].nan_to_num(), truth[~finite].nan_to_num()):
        return "non-finite values differ in kind"
    if not finite.any():
        return None
    truth = torch.where(finite, truth, 0.0)
    error = torch.where(finite, got.double() - truth, 0.0).abs()
    own = torch.where(finite, reference.double() - truth, 0.0).abs().max().item()
    bound = slack * (2 * own + torch.finfo(got.dtype).eps * truth.abs().max().item())
    worst = error.max().item()
    if worst <= bound:
        return None
    return f"error {worst:.3e} exceeds {bound:.3e} (the reference's own: {own:.3e})"


def sample_failure(op: Any, sample: Sample) -> str | None:
    """Runs an op, on the backend that the context names, and holds it to the reference on one sample.

    Returns:
        None when every result passes (equal bits where the op or the sample is exact), else what is wrong.
    """
    got = pieces(op(*sample.args, **sample.kwargs))
    reference = pieces(op.reference(*sample.args, **sample.kwargs))
    if op.exact or sample.exact:
        same = all(same_bits(a, b) for a, b in zip(got, reference, strict=True))
        return None if same else "bits differ from the reference"
    truth = pieces(op.reference(*to_float64(sample.args), **to_float64(dict(sample.kwargs))))
    found = (parity_failure(*each, slack=op.slack) for each in zip(got, reference, truth, strict=True))
    return next((text for text in found if text), None)
