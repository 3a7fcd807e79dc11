"""Whole networks: `accelerate` against the same module called as it is, channels-last, in the same dtype.

The group `peers` runs them against what others make of the module: torch.compile and OpenVINO.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aigc_engine import accelerate
from bench.case import Case, Mismatch, Work
from bench.networks import NETWORKS, build
from bench.rivals import PEERS, Rival

FLOAT32_BOUND = 1e-4  # of the result's norm
BFLOAT16_BOUND = 1.5  # times eager's own error
INT8_BOUND = 0.05  # of the result's norm
RIVAL_BOUND = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # of the norm: theirs does the same job


EAGER = "eager module, channels-last"


def cases() -> Iterator[Case]:
    yield from _cases("network", {EAGER: _eager})


def peer_cases() -> Iterator[Case]:
    yield from _cases("peers", PEERS)


def _cases(group: str, rivals: dict[str, Rival]) -> Iterator[Case]:
    for dtype in (torch.bfloat16, torch.float32):
        kind = str(dtype).removeprefix("torch.")
        for name in NETWORKS:
            for against, rival in rivals.items():
                case = f"{name}-{kind}" if group == "network" else f"{name}-{kind}-{against}"
                family = f"{group}-{kind}" if group == "network" else f"{against}-{kind}"
                work = partial(_work, name, dtype, case, rival)
                yield Case(group, case, against, work, seconds=10.0, family=family)


def _eager(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    """The module as it is."""
    arranged = [_channels_last(value) for value in args]

    def run() -> Any:
        with torch.no_grad():
            return model(*arranged, **kwargs)

    return run


def _work(name: str, dtype: torch.dtype, case: str, rival: Rival) -> Work:
    model, args, kwargs = build(name, dtype)
    model = model.to(memory_format=torch.channels_last)
    ours, eager = accelerate(model), _eager(model, args, kwargs)
    theirs = eager if rival is _eager else rival(model, args, kwargs)
    with FlopCounterMode(display=False) as counted:
        eager()

    def verify() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # nodes that are left to torch, at the first call
            got = _result(ours(*args, **kwargs))
        wanted = _result(eager())
        if dtype == torch.float32:
            error, bound = _distance(got, wanted), FLOAT32_BOUND
        else:
            wide_args, wide_kwargs = pytree.tree_map(_float32, (args, kwargs))
            with torch.no_grad():
                truth = _result(copy.deepcopy(model).float()(*wide_args, **wide_kwargs))
            error, bound = _distance(got, truth), BFLOAT16_BOUND * _distance(wanted, truth)
        if not error <= bound:
            raise Mismatch(f"{case}: error {error:.2e} of the norm, expected at most {bound:.2e}; not timed")
        difference = _distance(_result(theirs()), wanted)
        if not difference <= RIVAL_BOUND[dtype]:
            raise Mismatch(f"{case}: theirs is {difference:.2e} of the norm from eager; not timed")
        return (got.double() - wanted.double()).abs().max().item()

    flops = float(counted.get_total_flops())
    weights = sum(value.nbytes for value in model.parameters())
    run = partial(ours, *args, **kwargs)
    return Work(run, theirs, verify, flops=flops, bytes=float(weights), arithmetic=dtype)


def int8_work(name: str, case: str) -> Work:
    """A network in bfloat16 with int8 weights against the same without."""
    model, args, kwargs = build(name, torch.bfloat16)
    model = model.to(memory_format=torch.channels_last)
    ours, theirs = (partial(accelerate(model, quantize=how), *args, **kwargs) for how in ("int8", None))

    def verify() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # as above
            got, wanted = _result(ours()), _result(theirs())
        if not (error := _distance(got, wanted)) <= INT8_BOUND:
            raise Mismatch(
                f"{case}: {error:.1%} of the norm off, expected at most {INT8_BOUND:.0%}; not timed"
            )
        return (got.double() - wanted.double()).abs().max().item()

    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(*args, **kwargs)
    flops, weights = float(counted.get_total_flops()), sum(value.numel() for value in model.parameters())
    return Work(ours, theirs, verify, flops=flops, bytes=float(weights), arithmetic=torch.int8)


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
