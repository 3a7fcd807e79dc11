"""Linear layers with int8 weights against our own bfloat16 ones: what the lossy lever buys."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from aigc_engine.dispatch import explain
from aigc_engine.ops import linear, pack_linear
from aigc_engine.ops.linear import GATED, WORKLOADS
from bench.case import Case, Mismatch, Work

LARGE, LONE = 1024, 8  # rows: bound by products from here on, bound by reading the weight up to here
LARGE_TARGET, LONE_TARGET = 1.5, 1.7
ERROR = 0.02  # of the result's norm, on Gaussian data: 1.1 % from int8, the rest for bfloat16 results


def cases() -> Iterator[Case]:
    """Decoding and large workloads of `linear`, named `<workload>_int8`."""
    for name, (M, _, _, _) in WORKLOADS.items():
        if M >= LARGE or M <= LONE:
            target = LARGE_TARGET if M >= LARGE else LONE_TARGET
            case = f"linear-bfloat16-{name}_int8"
            yield Case("int8", case, "our bfloat16", partial(_work, name, case), target=target)


def _work(name: str, case: str) -> Work:
    M, K, N, act = WORKLOADS[name]
    g = torch.Generator().manual_seed(0)
    x = torch.randn((M, K), generator=g).bfloat16()
    weight = (torch.randn((N, K), generator=g) / math.sqrt(K)).bfloat16()
    quantised, plain = pack_linear(weight, quantize="int8"), pack_linear(weight)
    out = N // 2 if act in GATED else N

    def verify() -> float:
        for packed in (quantised, plain):
            runs = explain(linear, x, packed).runs
            if runs != "native":
                raise Mismatch(f"{case}: runs on {runs}, expected native; nothing was timed")
        truth = F.linear(x.float(), weight.float())
        difference = linear(x, quantised).float() - truth
        error = (difference.norm() / truth.norm()).item()
        if not error <= ERROR:
            raise Mismatch(f"{case}: error {error:.2%} of the norm, expected {ERROR:.0%}; nothing was timed")
        return difference.abs().max().item()

    return Work(
        partial(linear, x, quantised, act=act),
        partial(linear, x, plain, act=act),
        verify,
        flops=2.0 * M * K * N,
        bytes=float(N * K + 2 * M * (K + out)),
    )
