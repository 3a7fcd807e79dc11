"""Whole networks: `accelerate` against the same module called as it is, channels-last, in the same dtype."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from aigc_engine import accelerate
from bench.case import Case, Mismatch, Work
from bench.networks import NETWORKS, build

FLOAT32_BOUND = 1e-4  # of the result's norm
BFLOAT16_BOUND = 1.5  # times eager's own error


def cases() -> Iterator[Case]:
    for dtype in (torch.bfloat16, torch.float32):
        family = f"network-{str(dtype).removeprefix('torch.')}"
        for name in NETWORKS:
            case = f"{name}-{family.removeprefix('network-')}"
            work = partial(_work, name, dtype, case)
            yield Case("network", case, "eager module, channels-last", work, seconds=10.0, family=family)


def _work(name: str, dtype: torch.dtype, case: str) -> Work:
    model, args, kwargs = build(name, dtype)
    model = model.to(memory_format=torch.channels_last)
    arranged = [_channels_last(value) for value in args]
    ours = accelerate(model)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(*arranged, **kwargs)

    def run_theirs() -> Any:
        with torch.no_grad():
            return model(*arranged, **kwargs)

    def verify() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # nodes that are left to torch, at the first call
            got = _result(ours(*args, **kwargs))
        eager = _result(run_theirs())
        if dtype == torch.float32:
            error, bound = _distance(got, eager), FLOAT32_BOUND
        else:
            wide_args, wide_kwargs = pytree.tree_map(_float32, (args, kwargs))
            with torch.no_grad():
                truth = _result(copy.deepcopy(model).float()(*wide_args, **wide_kwargs))
            error, bound = _distance(got, truth), BFLOAT16_BOUND * _distance(eager, truth)
        if not error <= bound:
            raise Mismatch(f"{case}: error {error:.2e} of the norm, expected at most {bound:.2e}; not timed")
        return (got.double() - eager.double()).abs().max().item()

    flops = float(counted.get_total_flops())
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    return Work(
        partial(ours, *args, **kwargs),
        run_theirs,
        verify,
        flops=flops,
        bytes=float(weights),
        arithmetic=dtype,
    )


def _channels_last(value: Any) -> Any:
    image = isinstance(value, Tensor) and value.ndim == 4
    return value.contiguous(memory_format=torch.channels_last) if image else value


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _result(outputs: Any) -> Tensor:
    """The first tensor of whatever a network returns."""
    return next(value for value in pytree.tree_leaves(outputs) if isinstance(value, Tensor))


def _distance(got: Tensor, truth: Tensor) -> float:
    return ((got.double() - truth.double()).norm() / truth.double().norm()).item()
