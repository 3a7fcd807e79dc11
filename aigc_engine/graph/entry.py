"""`accelerate`: modules and pipelines whose networks run as native plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from aigc_engine import capability
from aigc_engine.dispatch import UnsupportedError
from aigc_engine.graph.accelerated import Accelerated
from aigc_engine.graph.options import Options
from aigc_engine.graph.pipeline import AcceleratedPipeline, networks


def accelerate(
    obj: Any,
    *,
    dtype: torch.dtype | None = None,
    precision: str | None = None,
    quantize: str | None = None,
    offload: str | Path | None = None,
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
        quantize: "int8": weights of linear layers and 2-D convolutions from 32 channels to 32 or more become
            integers, as `ops.pack_linear` and `ops.pack_conv2d` say, where they're used in every call. Lossy:
            each loses about 1 % of its norm, which `explain()` says; compare samples before you rely on it.
        offload: a folder on a disk: the module's weights move to an unnamed file there, which is mapped, and
            only packed ones stay in memory. They can be read and written as before, from the file.
        saved: what `save(path)` of an accelerated module wrote: it needn't be captured again.
        strict: raises where a node is left to torch; otherwise one warning says so.

    Returns:
        A callable with the attributes of `obj`. `explain()` lists the latest plan, `restore()` undoes
        everything and returns `obj`; of a module, `profile(...)` times a call's nodes and `save(path)` keeps
        what was captured.

    Precision: as the ops say: products as `precision`, all else in float32 and rounded once. A sample's bits
        don't depend on its batch as far as nodes are native.

    Memory: packed weights beside the module's own, unless those are offloaded; for each shape (the latest 16)
        an arena, whose size `explain()` says.

    Raises:
        TypeError: neither a module nor a pipeline, or another dtype.
        OSError: no room for offloaded weights.
        ValueError: training mode, unknown precision or quantize, offload is no folder, a weight to be
            quantised isn't finite, or saved by another version or of another module.
        UnsupportedError: at the call: a module that can't be captured, or tensors elsewhere than on the CPU.
    """
    options = Options(dtype, precision, quantize, offload, strict)
    if capability.native_missing() is not None:
        raise UnsupportedError(f"accelerate: {capability.native_missing()}")
    if isinstance(obj, nn.Module):
        _check_eval(obj)
        fast = Accelerated(obj, options)
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
        obj, {name: Accelerated.shared(module, options) for name, module in found.items()}
    )


def _check_eval(module: nn.Module) -> None:
    if module.training:
        name = type(module).__name__
        raise ValueError(f"accelerate: {name} is in training mode, expected eval mode; call eval()")
