"""`python -m tests.compile_kernels 90` compiles what the Triton launchers launch, for a GPU that isn't there.

The launchers run on meta tensors of real workloads, so that their own choice of tiles, warps and
specialisation is compiled; a stand-in for Triton's driver names the target, and nothing is launched. Prints
a JSON line per kernel.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# PTX that isn't one correctly rounded IEEE operation
INEXACT = re.compile(r"\b(?:fma\.rn\.f32|\w+\.approx|\w+(?:\.\w+)*\.ftz|div\.full)\b")
NARROW_LOAD = re.compile(r"\bld\.global\.(?![\w.]*v4)")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def meta(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def heads(dtype: torch.dtype, b: int, n: int, t: int, s: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as the projections of a model leave them: (B, T, N, D) in memory."""
    q, k, v = (meta(dtype, b, length, n, d).transpose(1, 2) for length in (t, s, s))
    return q, k, v


def nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def update(dtype: torch.dtype, terms: int, noise: bool, *shape: int) -> tuple[tuple, dict[str, Any]]:
    rows = shape[0]
    numbers = {"noise_scale": meta(FP32, rows)}
    numbers |= {name: meta(torch.int64, rows) for name in ("seeds", "streams")}
    return ([meta(dtype, *shape) for _ in range(terms)], meta(FP32, rows, terms)), numbers if noise else {}


def mask(b: int, s: int) -> Tensor:
    return meta(torch.bool, b, s)


# id -> (op, arguments); made when asked for, so that naming them costs nothing
CASES: dict[str, tuple[str, Callable[[], tuple[tuple, dict[str, Any]]]]] = {
    "stylegan2_256px-float32": (
        "bias_act",
        lambda: ((meta(FP32, 4, 128, 128, 128), meta(FP32, 128)), {"act": "leaky_relu", "clamp": 256.0}),
    ),
    "mlp_3072-bfloat16": (
        "bias_act",
        lambda: ((meta(BF16, 4096, 3072), meta(BF16, 3072)), {"act": "gelu"}),
    ),
    "no_bias-float16": ("bias_act", lambda: ((meta(FP16, 2, 320, 64, 64),), {"act": "tanh"})),
    "sd15_unet_mid-bfloat16": (
        "group_norm_silu",
        lambda: ((meta(BF16, 2, 1280, 8, 8), 32, meta(BF16, 1280), meta(BF16, 1280)), {}),
    ),
    "sd15_unet_top_nhwc-bfloat16": (
        "group_norm_silu",
        lambda: ((nhwc(meta(BF16, 2, 320, 64, 64)), 32, meta(BF16, 320), meta(BF16, 320)), {}),
    ),
    "vae_decoder-float32": (
        "group_norm_silu",
        lambda: ((meta(FP32, 1, 128, 512, 512), 32, meta(FP32, 128), meta(FP32, 128)), {}),
    ),
    "sd15_ddim-float32": ("linear_update", lambda: update(FP32, 2, False, 1, 4, 64, 64)),
    "sd15_dpmpp_sde-float32": ("linear_update", lambda: update(FP32, 6, True, 1, 4, 64, 64)),
    "eight_terms-bfloat16": ("linear_update", lambda: update(BF16, 8, True, 8, 4, 128, 128)),
    "sd15_self_d40-bfloat16": ("attention", lambda: (heads(BF16, 2, 8, 4096, 4096, 40), {})),
    "sdxl_self_d64-bfloat16": ("attention", lambda: (heads(BF16, 2, 10, 4096, 4096, 64), {})),
    "padded_d64-bfloat16": ("attention", lambda: (heads(BF16, 2, 8, 512, 512, 64), {"mask": mask(2, 512)})),
    "sd15_cross_d80-float16": (
        "attention",
        lambda: (heads(FP16, 2, 8, 1024, 77, 80), {"mask": mask(2, 77)}),
    ),
    "text_d128-bfloat16": (
        "attention",
        lambda: (heads(BF16, 2, 32, 2048, 2048, 128), {"mask": mask(2, 2048), "causal": True}),
    ),
    "text_d64-float32": (
        "attention",
        lambda: (heads(FP32, 2, 12, 1024, 1024, 64), {"mask": mask(2, 1024), "causal": True}),
    ),
    "padded_d128-float32": (
        "attention",
        lambda: (heads(FP32, 2, 8, 256, 256, 128), {"mask": mask(2, 256)}),
    ),
}


class Target:
    """As much of Triton's driver as compiling asks for."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def resources(cubin: bytes) -> dict[str, int]:
    """Registers per thread and bytes of local memory (spills and stack) that the assembler settled on."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", listing)}
    return {"registers": found["REG"], "spilled": found["STACK"] + found["LOCAL"]}


def main(arch: int) -> None:
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    driver.set_active(Target(arch))
    compiled: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled.append((self.__name__, run(self, *args, grid=grid, warmup=True, **kwargs)))

    JITFunction.run = compile_only
    for name, (op, arguments) in CASES.items():
        args, kwargs = arguments()
        compiled.clear()
        getattr(importlib.import_module(f"aigc_engine.kernels.{op}"), op)(*args, **kwargs)
        for kernel_name, kernel in compiled:
            facts = {
                "case": name,
                "kernel": kernel_name,
                "warps": kernel.metadata.num_warps,
                "shared": kernel.metadata.shared,
                "narrow_loads": len(NARROW_LOAD.findall(kernel.asm["ptx"])),
                "inexact": sorted(set(INEXACT.findall(kernel.asm["ptx"]))),
            }
            print(json.dumps(facts | resources(kernel.asm["cubin"])), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
