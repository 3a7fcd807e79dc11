"""Conditions of a batch: put in the table's row order, cut to the active rows, and paired for guidance.

Classifier-free guidance evaluates the conditional rows and then the unconditional ones in one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PLAIN = (str, int, float, bool, type(None))


class Conditions:
    """What the denoiser gets as `cond` when the first `rows` rows of the table are active.

    Args:
        cond, uncond: a tensor with leading dimension n, a dict, tuple or list of such, or any other object,
            which is passed on as it is. uncond is None without guidance.
        order: (n,) the caller's index of each row of the table.
        guided: pair each cond with its uncond.
        device: where the tensors have to be.

    Raises:
        ValueError: guidance without cond or uncond, a leading dimension other than n, a wrong device, or cond
            and uncond of different structure or shape.
        TypeError: objects that can't be cut to rows or paired, where that is needed.
    """

    def __init__(
        self, cond: Any, uncond: Any, order: Tensor, *, guided: bool, uniform: bool, device: torch.device
    ) -> None:
        self._n, self._device = len(order), device
        self._in_order = uniform or bool((order == torch.arange(len(order))).all())
        self._uniform = uniform
        if guided and (cond is None or uncond is None):
            missing = "cond" if cond is None else "uncond"
            raise ValueError(
                f"sample: {missing} None, expected both with guidance other than 1; "
                "uncond is what cond is where there is no condition"
            )
        self._order = order.to(device)
        self._parts = [self._map("cond", cond, self._ordered)]
        if guided:
            self._parts.append(self._map("uncond", uncond, self._ordered))
        self._cut: tuple[int, Any] | None = None

    def rows(self, rows: int) -> Any:
        """The condition of the first `rows` rows, conditional ones first."""
        if self._cut is None or self._cut[0] != rows:
            cut = [self._map("cond", part, lambda name, x: x[:rows]) for part in self._parts]
            self._cut = rows, cut[0] if len(cut) == 1 else self._paired("cond", cut[0], cut[1])
        return self._cut[1]

    def _map(self, name: str, value: Any, fn: Callable[[str, Tensor], Tensor]) -> Any:
        if isinstance(value, Tensor):
            return fn(name, value)
        if isinstance(value, dict):
            return {key: self._map(f"{name}[{key!r}]", item, fn) for key, item in value.items()}
        if type(value) in (tuple, list):
            return type(value)(self._map(f"{name}[{i}]", item, fn) for i, item in enumerate(value))
        if not self._uniform and not isinstance(value, PLAIN):
            raise TypeError(
                f"sample: {name} {type(value).__name__}, expected tensors where rows take different "
                "numbers of steps; rows that are done leave the batch"
            )
        return value

    def _ordered(self, name: str, value: Tensor) -> Tensor:
        if value.ndim == 0 or value.shape[0] != self._n:
            raise ValueError(
                f"sample: {name} {tuple(value.shape)}, expected leading dimension n = {self._n}; repeat it"
            )
        if value.device != self._device:
            raise ValueError(f"sample: {name} on {value.device}, expected {self._device}; move it")
        return value if self._in_order else value[self._order]

    def _paired(self, name: str, cond: Any, uncond: Any) -> Any:
        if isinstance(cond, Tensor) and isinstance(uncond, Tensor):
            if cond.shape != uncond.shape or cond.dtype != uncond.dtype:
                raise ValueError(
                    f"sample: un{name} {uncond.dtype} {tuple(uncond.shape)}, "
                    f"expected {cond.dtype} {tuple(cond.shape)} as {name}"
                )
            return torch.cat([cond, uncond])
        if isinstance(cond, dict) and isinstance(uncond, dict) and cond.keys() == uncond.keys():
            return {key: self._paired(f"{name}[{key!r}]", cond[key], uncond[key]) for key in cond}
        if type(cond) in (tuple, list) and type(cond) is type(uncond) and len(cond) == len(uncond):
            pairs = enumerate(zip(cond, uncond, strict=True))
            return type(cond)(self._paired(f"{name}[{i}]", c, u) for i, (c, u) in pairs)
        if cond is uncond or (isinstance(cond, PLAIN) and isinstance(uncond, PLAIN) and cond == uncond):
            return cond
        raise TypeError(
            f"sample: {name} {type(cond).__name__} and un{name} {type(uncond).__name__} can't make "
            "one batch, expected tensors, or dicts, tuples or lists of tensors, of the same structure"
        )
