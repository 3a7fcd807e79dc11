"""Validation shared by the ops: raises `<op>: <argument> <got>, expected <wanted>; <what to do>`."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

FLOATS = frozenset({torch.float32, torch.bfloat16})


def tensor(op: str, name: str, value: object) -> None:
    """`value` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} {type(value).__name__}, expected a torch.Tensor")


def floating(op: str, name: str, value: object) -> None:
    """`value` is a floating-point tensor."""
    tensor(op, name, value)
    if not value.is_floating_point():  # type: ignore[attr-defined]
        raise TypeError(
            f"{op}: {name} {value.dtype}, expected a floating dtype; convert it"  # type: ignore[attr-defined]
        )


def rank(op: str, name: str, value: Tensor, low: int, high: int | None = None) -> None:
    """`value` has between low and high dimensions (high None: no upper bound)."""
    if value.ndim < low or (high is not None and value.ndim > high):
        wanted = f"{low}" if high == low else f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{op}: {name} has {value.ndim} dimensions, expected {wanted}")


def shape(op: str, name: str, value: Tensor, wanted: tuple[int, ...]) -> None:
    """`value` has exactly this shape."""
    if tuple(value.shape) != wanted:
        raise ValueError(f"{op}: {name} shape {tuple(value.shape)}, expected {wanted}")


def same(op: str, name: str, value: Tensor, lead_name: str, lead: Tensor) -> None:
    """`value` has the device and dtype of the leading tensor."""
    if value.dtype != lead.dtype:
        raise TypeError(
            f"{op}: {name} {value.dtype}, expected {lead.dtype} as {lead_name}; convert one of them"
        )
    if value.device != lead.device:
        raise ValueError(
            f"{op}: {name} on {value.device}, expected {lead.device} as {lead_name}; move one of them"
        )


def vector(op: str, name: str, value: Tensor, length: int, lead_name: str, lead: Tensor) -> None:
    """`value` is a 1-D tensor of that length with the leading tensor's device and dtype."""
    tensor(op, name, value)
    same(op, name, value, lead_name, lead)
    shape(op, name, value, (length,))


def choice(op: str, name: str, value: str, allowed: Collection[str]) -> None:
    """`value` is one of the names."""
    if value not in allowed:
        raise ValueError(f"{op}: {name} {value!r}, expected one of {sorted(allowed)}")
