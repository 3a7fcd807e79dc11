"""`accelerate`: modules and pipelines whose networks run as native plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from aigc_engine import capability
from aigc_engine.dispatch import UnsupportedError
from aigc_engine.graph.accelerated import Accelerated
from aigc_engine.graph.pipeline import AcceleratedPipeline, networks
from aigc_engine.packed import PRECISIONS

DTYPES = (torch.float32, torch.bfloat16)


def accelerate(
    obj: Any,
    *,
    dtype: torch.dtype | None = None,
    precision: str | None = None,
    strict: bool = False,
    saved: str | Path | None = None,
) -> Any:
    """Runs a network's calls as native plans: same arguments, same results.

    A module is captured once, for all shapes, when it's first called; each new shape of arguments then
    makes a plan, in which neighbouring layers are fused, weights are packed, and all values lie in one block
    of memory. Weights that are changed in place, loaded or replaced are noticed at the next call. So are
    other submodules (LoRA's), hooks and options, after which the module is captured again. Several threads
    may call at once.

    What doesn't follow from the first tensor among the arguments is computed anew only when those that it
    follows from have changed. `sample` runs an accelerated denoiser's steps without Python.

    Code that treats a batch of one differently from larger ones is run as for larger ones. Numbers are read
    as tensors, so that other values need no new graph; fractions aren't where the module rounds them, which
    is found out by calling it with the first one and with its tensor.

    Of a diffusers pipeline, each network's forward is replaced, in place, once for all pipelines that share
    it. Networks that can't be captured then run as they are, with a warning.

    Args:
        obj: an nn.Module in eval mode, on the CPU, without data-dependent control flow, which is left as it
            is; or a pipeline, that is, something with `components`.
        dtype: torch.float32 or torch.bfloat16: computes in it, as the module would after `.to(dtype)`, with
            arguments cast (but those of a single axis, which are times) and results cast back; None: its own.
        precision: of float32 products, as `ops.pack_linear` says; None: torch.get_float32_matmul_precision().
        saved: what `save(path)` of an accelerated module wrote: it needn't be captured again.
        strict: raises where a node is left to torch; otherwise one warning says so.

    Returns:
        A callable with the attributes of `obj`. `explain()` lists the latest plan, `restore()` undoes
        everything and returns `obj`; of a module, `profile(...)` times a call's nodes and `save(path)` keeps
        what was captured.

    Precision: as the ops say: products as `precision`, all else in float32 and rounded once. A sample's bits
        don't depend on its batch as far as nodes are native.

    Memory: packed weights once; for each shape (the latest 16) an arena, whose size `explain()` says.

    Raises:
        TypeError: neither a module nor a pipeline, or another dtype.
        ValueError: training mode, unknown precision, or saved by another version or of another module.
        UnsupportedError: at the call: a module that can't be captured, or tensors elsewhere than on the CPU.
    """
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"accelerate: precision {precision!r}, expected one of {list(PRECISIONS)}, or None")
    if dtype is not None and dtype not in DTYPES:
        raise TypeError(f"accelerate: dtype {dtype!r}, expected one of {list(DTYPES)}, or None")
    if capability.native_missing() is not None:
        raise UnsupportedError(f"accelerate: {capability.native_missing()}")
    if isinstance(obj, nn.Module):
        _check_eval(obj)
        fast = Accelerated(obj, dtype, precision, strict)
        if saved is not None:
            fast.load(saved)
        return fast
    if saved is not None:
        raise ValueError("accelerate: saved, expected a module; load each network of a pipeline by itself")
    if not isinstance(getattr(obj, "components", None), dict):
        raise TypeError(
            f"accelerate: obj {type(obj).__name__}, expected a torch.nn.Module or a diffusers pipeline"
        )
    found = networks(obj)
    for module in found.values():
        _check_eval(module)
    return AcceleratedPipeline(
        obj,
        {name: Accelerated.shared(module, dtype, precision, strict) for name, module in found.items()},
    )


def _check_eval(module: nn.Module) -> None:
    if module.training:
        name = type(module).__name__
        raise ValueError(f"accelerate: {name} is in training mode, expected eval mode; call eval()")
