"""What callers pass to `sample`, checked and spread over the rows."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from aigc_engine.diffusion.schedule import Schedule, schedule_of
from aigc_engine.diffusion.solver import Recipe
from aigc_engine.diffusion.spacing import spacing_of
from aigc_engine.graph import Accelerated
from aigc_engine.latents import integer

DEFAULT_STRENGTH = 0.8  # as diffusers' image-to-image pipelines
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Generators: TypeAlias = torch.Generator | Sequence[torch.Generator]


def batch_shape(shape: Any) -> tuple[int, ...]:
    """(n, ...) with n >= 1 and at least one more axis."""
    if isinstance(shape, (str, Tensor)) or not isinstance(shape, Sequence):
        raise TypeError(
            f"sample: shape {type(shape).__name__}, expected a sequence of ints such as (n, C, H, W)"
        )
    sizes = tuple(integer("sample", f"shape[{i}]", size) for i, size in enumerate(shape))
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sample: shape {sizes}, expected (n, ...) with n >= 1 and one or more axes of >= 1")
    return sizes


def spread(value: Any) -> bool:
    """Whether the value holds one entry per row."""
    return isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.ndim > 0)


def per_row(name: str, value: Any, n: int) -> list[Any]:
    """A list of n: the value for each row, or the values of a list, tuple or 1-D tensor."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if not spread(value):
        return [value] * n
    if len(value) != n:
        raise ValueError(f"sample: {name} has {len(value)} entries, expected n = {n} or a single value")
    return list(value)


def number(name: str, value: Any) -> float:
    """A float; TypeError for what isn't a number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"sample: {name} {value!r}, expected a number")
    return float(value)


def recipes(
    n: int,
    *,
    solver: Any,
    steps: Any,
    schedule: str | Schedule,
    prediction: str | None,
    spacing: Any,
    eta: Any,
    guidance: Any,
    from_image: bool,
    strength: Any,
) -> list[Recipe]:
    """One recipe per row.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if strength is not None and not from_image:
        raise ValueError(
            f"sample: strength {strength!r} without start, expected None; pass the image as start"
        )
    noise_levels = schedule_of(schedule)
    columns = {
        "solver": solver,
        "steps": steps,
        "spacing": spacing,
        "eta": eta,
        "guidance": guidance,
        "strength": strength,
    }
    count = n if any(map(spread, columns.values())) else 1
    rows = zip(*(per_row(name, value, count) for name, value in columns.items()), strict=True)
    result = []
    for row_solver, row_steps, row_spacing, row_eta, row_guidance, row_strength in rows:
        recipe = Recipe(
            solver=row_solver,
            steps=integer("sample", "steps", row_steps),
            schedule=noise_levels,
            prediction=prediction or noise_levels.default_prediction,
            spacing=spacing_of(row_spacing),
            eta=number("eta", row_eta),
            guidance=number("guidance", row_guidance),
        )
        if from_image:
            recipe = replace(recipe, begin=_begin(recipe.steps, row_strength))
        result.append(recipe)
    return result if count == n else result * n


def _begin(steps: int, strength: Any) -> int:
    """Steps left out when `strength` of them are done."""
    share = number("strength", DEFAULT_STRENGTH if strength is None else strength)
    if not 0 < share <= 1:
        raise ValueError(f"sample: strength {share}, expected above 0 and at most 1")
    kept = int(steps * share)
    if kept < 1:
        raise ValueError(
            f"sample: strength {share} of steps {steps} leaves none, expected at least "
            f"{1 / steps:.3g}; raise one of them"
        )
    return steps - kept


def placement(
    denoiser: Any,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    tensors: Sequence[Tensor | None],
) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the denoiser's input, from its parameters where they aren't given."""
    if not callable(denoiser):
        raise TypeError(f"sample: denoiser {type(denoiser).__name__}, expected a callable (x, t, cond)")
    module = denoiser.module if isinstance(denoiser, Accelerated) else denoiser
    parameters = list(module.parameters()) if isinstance(module, nn.Module) else []
    if device is None:
        known = [*parameters[:1], *(t for t in tensors if isinstance(t, Tensor))]
        device = known[0].device if known else "cpu"
    if dtype is None:
        floating = [p.dtype for p in parameters if p.is_floating_point()]
        dtype = floating[0] if floating and floating[0] in DTYPES else torch.float32
    if dtype not in DTYPES:
        raise TypeError(f"sample: dtype {dtype}, expected torch.float32, torch.bfloat16 or torch.float16")
    return torch.empty(0, device=device).device, dtype  # "cuda" becomes "cuda:0"


def check_state(name: str, value: Tensor | None, shape: tuple[int, ...], device: torch.device) -> None:
    """A floating tensor of that shape on that device, or None."""
    if value is None:
        return
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"sample: {name} {kind}, expected a floating tensor")
    if tuple(value.shape) != shape:
        raise ValueError(f"sample: {name} {tuple(value.shape)}, expected {shape} as shape")
    if value.device != device:
        raise ValueError(f"sample: {name} on {value.device}, expected {device} as the denoiser; move it")


def check_generator(generator: Generators | None, n: int) -> None:
    """None, a torch.Generator, or a sequence of n of them."""
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, Sequence) or not all(isinstance(g, torch.Generator) for g in generator):
        raise TypeError(
            f"sample: generator {type(generator).__name__}, expected a torch.Generator or n of them"
        )
    if len(generator) != n:
        raise ValueError(f"sample: generator has {len(generator)} entries, expected n = {n}")
