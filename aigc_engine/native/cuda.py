"""Adapters of the CUDA launchers; work is queued on PyTorch's current stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_engine import _native
from aigc_engine.native import DTYPE_CODES
from aigc_engine.native.diffusion import contiguous_rows, writable


def linear_update(
    terms: Sequence[Tensor],
    coefficients: Tensor,
    *,
    noise_scale: Tensor | None = None,
    seeds: Tensor | None = None,
    streams: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    x = terms[0]
    if not x.numel():
        return torch.empty_like(x) if out is None else out
    rows = x.shape[0]
    terms = contiguous_rows(terms)
    target = writable(x, out)
    coefficients = coefficients.contiguous()
    noise: Sequence[Tensor] = ()
    if noise_scale is not None and seeds is not None and streams is not None:
        noise = [value.contiguous() for value in (noise_scale, seeds, streams)]
    with torch.cuda.device(x.device):
        _native.linear_update_cuda(
            [term.data_ptr() for term in terms],
            [term.stride(0) for term in terms],
            target.data_ptr(),
            target.stride(0),
            coefficients.data_ptr(),
            [value.data_ptr() for value in noise],
            rows,
            x.numel() // rows,
            DTYPE_CODES[x.dtype],
            x.device.index,
            torch.cuda.current_stream(x.device).cuda_stream,
        )
    return target if out is None or target is out else out.copy_(target)
