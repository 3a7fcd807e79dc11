"""int8 weights against our own bfloat16, op by op and in whole networks: what the lossy lever buys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import Op, explain
from aigc_engine.ops import conv as conv_op
from aigc_engine.ops import conv2d, linear, pack_conv2d, pack_linear
from aigc_engine.ops.linear import GATED, WORKLOADS
from aigc_engine.packed import PackedWeight
from bench.bench_network import int8_work
from bench.case import Case, Mismatch, Work

LARGE, LONE = 1024, 8  # rows: bound by products from here on, bound by reading the weight up to here
LARGE_TARGET, LONE_TARGET = 1.5, 1.7
NETWORKS = ("ddpm_cifar10_batch_16", "dit_b_2_batch_2", "sd15_unet_256px_batch_2")
ERROR = 0.02  # of the result's norm, on Gaussian data: 1.1 % from int8, the rest for bfloat16 results


def cases() -> Iterator[Case]:
    """Decoding and large workloads of `linear`, all of `conv2d`, networks; named `<workload>_int8`."""
    for name, (M, _, _, _) in WORKLOADS.items():
        if M >= LARGE or M <= LONE:
            target = LARGE_TARGET if M >= LARGE else LONE_TARGET
            case = f"linear-bfloat16-{name}_int8"
            yield Case("int8", case, "our bfloat16", partial(_linear_work, name, case), target=target)
    for name in conv_op.WORKLOADS:
        case = f"conv2d-bfloat16-{name}_int8"
        yield Case("int8", case, "our bfloat16", partial(_conv_work, name, case), target=LARGE_TARGET)
    for name in NETWORKS:
        case = f"network-bfloat16-{name}_int8"
        work = partial(int8_work, name, case)
        yield Case("int8", case, "our bfloat16", work, seconds=10.0, family="network-int8")


def _linear_work(name: str, case: str) -> Work:
    M, K, N, act = WORKLOADS[name]
    g = torch.Generator().manual_seed(0)
    x = torch.randn((M, K), generator=g).bfloat16()
    weight = (torch.randn((N, K), generator=g) / math.sqrt(K)).bfloat16()
    quantised, plain = pack_linear(weight, quantize="int8"), pack_linear(weight)
    out = N // 2 if act in GATED else N
    return Work(
        partial(linear, x, quantised, act=act),
        partial(linear, x, plain, act=act),
        partial(_verify, case, linear, x, quantised, plain, lambda: F.linear(x.float(), weight.float())),
        flops=2.0 * M * K * N,
        bytes=float(N * K + 2 * M * (K + out)),
        arithmetic=torch.int8,
    )


def _conv_work(name: str, case: str) -> Work:
    B, C, out, size = conv_op.WORKLOADS[name]
    g = torch.Generator().manual_seed(0)
    x = torch.randn((B, C, size, size), generator=g).bfloat16().contiguous(memory_format=torch.channels_last)
    weight = (torch.randn((out, C, 3, 3), generator=g) / math.sqrt(9 * C)).bfloat16()
    quantised, plain = pack_conv2d(weight, quantize="int8"), pack_conv2d(weight)
    pixels, same = B * size * size, partial(conv2d, padding=1)
    return Work(
        partial(same, x, quantised),
        partial(same, x, plain),
        partial(
            _verify,
            case,
            conv2d,
            x,
            quantised,
            plain,
            lambda: F.conv2d(x.float(), weight.float(), padding=1),
            padding=1,
        ),
        flops=2.0 * pixels * 9 * C * out,
        bytes=float(9 * C * out + 2 * pixels * (C + out)),
        arithmetic=torch.int8,
    )


def _verify(
    case: str,
    op: Op,
    x: Tensor,
    quantised: PackedWeight,
    plain: PackedWeight,
    exact: Callable[[], Tensor],
    **options: int,
) -> float:
    for packed in (quantised, plain):
        runs = explain(op, x, packed, **options).runs
        if runs != "native":
            raise Mismatch(f"{case}: runs on {runs}, expected native; nothing was timed")
    truth = exact()
    difference = op(x, quantised, **options).float() - truth
    error = (difference.norm() / truth.norm()).item()
    if not error <= ERROR:
        raise Mismatch(f"{case}: error {error:.2%} of the norm, expected {ERROR:.0%}; nothing was timed")
    return difference.abs().max().item()
