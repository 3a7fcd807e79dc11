"""Programs of elementwise steps, run in one pass over memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.ops import checks
from aigc_engine.testing import Sample

Step = tuple[Any, ...]  # (name, operand, ...); an operand is an int (a value) or a float (a constant)

# The number of operands of each step, and what it is. csrc/cpu/args.h has the same list.
STEPS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "abs": (1, torch.abs),
    "cos": (1, torch.cos),
    "exp": (1, torch.exp),
    "gelu": (1, F.gelu),
    "gelu_tanh": (1, lambda x: F.gelu(x, approximate="tanh")),
    "log": (1, torch.log),
    "neg": (1, torch.neg),
    "reciprocal": (1, torch.reciprocal),
    "relu": (1, torch.relu),
    "rsqrt": (1, torch.rsqrt),
    "sigmoid": (1, torch.sigmoid),
    "silu": (1, F.silu),
    "sin": (1, torch.sin),
    "sqrt": (1, torch.sqrt),
    "square": (1, torch.square),
    "tanh": (1, torch.tanh),
    "add": (2, lambda a, b: a + b),
    "div": (2, lambda a, b: a / b),
    "leaky_relu": (2, lambda x, slope: torch.where(x > 0, x, x * slope)),
    "maximum": (2, torch.maximum),
    "minimum": (2, torch.minimum),
    "mul": (2, lambda a, b: a * b),
    "sub": (2, lambda a, b: a - b),
    "clamp": (3, lambda x, low, high: torch.minimum(torch.maximum(x, low), high)),
    "mul_add": (3, lambda x, scale, shift: x * scale + shift),
    "where": (3, lambda condition, a, b: torch.where(condition != 0, a, b)),
}
MOST_AXES = 8  # csrc/cpu/args.h: kMaxRank
MEMORY_FORMATS = {torch.preserve_format: 0, torch.contiguous_format: 0, torch.channels_last: 4}  # axes needed


def _check_operand(place: str, operand: object, known: int) -> None:
    if isinstance(operand, float):
        return
    if not isinstance(operand, int) or isinstance(operand, bool):
        raise TypeError(
            f"pointwise: {place} has operand {operand!r}, expected the number of a value (an int) or a"
            " constant (a float)"
        )
    if not 0 <= operand < known:
        raise ValueError(f"pointwise: {place} has operand {operand}, expected a value from 0 to {known - 1}")


def _check_program(program: Sequence[Step], tensors: int) -> None:
    if not isinstance(program, (list, tuple)):
        raise TypeError(f"pointwise: program {type(program).__name__}, expected a list or tuple of steps")
    for s, step in enumerate(program):
        if not isinstance(step, tuple) or not step:
            raise TypeError(f"pointwise: step {s} is {step!r}, expected a tuple of a name and its operands")
        name, *operands = step
        if name not in STEPS:
            raise ValueError(f"pointwise: step {s} is {name!r}, expected one of {sorted(STEPS)}")
        wanted = STEPS[name][0]
        if len(operands) not in (wanted, wanted - 1):
            raise ValueError(
                f"pointwise: step {s}, {name}, has {len(operands)} operands, expected {wanted}, or"
                f" {wanted - 1} after the value of the step before"
            )
        for operand in operands:
            _check_operand(f"step {s}, {name},", operand, tensors + s)


def _check_pointwise(
    program: Sequence[Step],
    *tensors: Tensor,
    out_dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.preserve_format,
) -> None:
    if not tensors:
        raise ValueError("pointwise: no tensors, expected at least one after the program")
    for k, value in enumerate(tensors):
        checks.floating("pointwise", f"tensor {k}", value)
        if value.device != tensors[0].device:
            raise ValueError(
                f"pointwise: tensor {k} on {value.device}, expected {tensors[0].device} as tensor 0; move one"
            )
    try:
        rank = len(torch.broadcast_shapes(*(value.shape for value in tensors)))
    except RuntimeError:
        shapes = [tuple(value.shape) for value in tensors]
        raise ValueError(f"pointwise: tensors of shapes {shapes}, expected shapes that broadcast") from None
    _check_program(program, len(tensors))
    if out_dtype is not None and not (isinstance(out_dtype, torch.dtype) and out_dtype.is_floating_point):
        raise TypeError(f"pointwise: out_dtype {out_dtype}, expected a floating dtype or None")
    if memory_format not in MEMORY_FORMATS:
        raise ValueError(f"pointwise: memory_format {memory_format}, expected one of {list(MEMORY_FORMATS)}")
    if MEMORY_FORMATS[memory_format] not in (0, rank):
        raise ValueError(f"pointwise: memory_format {memory_format} of {rank} axes, expected 4 axes")


def result_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """The widest dtype among the tensors, those of no axes included."""
    return reduce(torch.promote_types, (value.dtype for value in tensors))


def empty_result(
    tensors: Sequence[Tensor], out_dtype: torch.dtype | None, memory_format: torch.memory_format
) -> Tensor:
    """A tensor for the result of a program on these tensors."""
    x, dtype = tensors[0], out_dtype or result_dtype(tensors)
    shape = torch.broadcast_shapes(*(value.shape for value in tensors))
    if memory_format == torch.preserve_format:
        if x.shape == shape:
            return torch.empty_like(x, dtype=dtype)
        memory_format = torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=memory_format)


def _run(program: Sequence[Step], tensors: Sequence[Tensor], constant: Callable[[float], Any]) -> Tensor:
    values = list(tensors)
    for s, (name, *operands) in enumerate(program):
        wanted, step = STEPS[name]
        found = [values[v] if isinstance(v, int) else constant(v) for v in operands]
        values.append(step(*([values[-1 if s else 0]] * (wanted - len(found))), *found))
    return values[-1] if program else values[0]


def _eager(
    program: Sequence[Step],
    *tensors: Tensor,
    out_dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.preserve_format,
) -> Tensor:
    """What a PyTorch user writes: each step in the tensors' own dtype."""
    shape = torch.broadcast_shapes(*(value.shape for value in tensors))
    found = _run(program, tensors, torch.tensor).expand(shape)
    return found.to(out_dtype or result_dtype(tensors), memory_format=memory_format)


def _cost(program: Sequence[Step], *tensors: Tensor, **kwargs: Any) -> tuple[float, float]:
    """An operation a step and element; each tensor read once and the result written once."""
    count = math.prod(torch.broadcast_shapes(*(value.shape for value in tensors)))
    dtype = kwargs.get("out_dtype") or result_dtype(tensors)
    read = sum(value.numel() * value.element_size() for value in tensors)
    return float(len(program) * count), float(read + count * dtype.itemsize)


def _facts(program: Sequence[Step], *tensors: Tensor, **kwargs: Any) -> dict[str, Any]:
    """`tensors`, `steps`, `axes`: how many; `tensor_dtypes`: whether all are among float32 and bfloat16."""
    dtypes = {value.dtype for value in tensors} | {kwargs.get("out_dtype") or tensors[0].dtype}
    return {
        "tensors": len(tensors),
        "steps": len(program),
        "axes": max(value.ndim for value in tensors),
        "tensor_dtypes": "float32 and bfloat16" if dtypes <= checks.FLOATS else str(sorted(map(str, dtypes))),
    }


def _samples(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=g).to(device, dtype)

    yield from _step_samples(randn)
    yield from _exact_samples(randn)
    yield from _layout_samples(randn)
    nhwc, last = torch.channels_last, {"memory_format": torch.channels_last}
    x, y = (randn(2, 320, 64, 64).contiguous(memory_format=nhwc) for _ in range(2))
    yield Sample("sd15_unet_residual_add", ([("add", 1)], x, y), bench=True)
    yield Sample("sd15_latent_to_channels_last", ([], randn(2, 4, 64, 64)), last, bench=True)
    yield Sample("sd15_unet_to_channels_last", ([], randn(2, 320, 64, 64)), last, bench=True)
    other = torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
    yield Sample("sd15_unet_cast", ([], x), {"out_dtype": other}, bench=True)
    tokens, scale, shift = randn(2, 256, 1152), randn(2, 1, 1152), randn(2, 1, 1152)
    yield Sample("dit_xl_2_256px_modulate", (MODULATE, tokens, scale, shift), bench=True)


MODULATE: list[Step] = [("add", 1, 1.0), ("mul_add", 0, 3, 2)]  # x (1 + scale) + shift


def _step_samples(randn: Callable[..., Tensor]) -> Iterator[Sample]:
    x, y, z = (randn(3, 5, 33) for _ in range(3))
    for name, (operands, _) in STEPS.items():
        first = [("abs",), ("add", 0.25)] if name in ("log", "rsqrt", "sqrt") else []
        operand = {"leaky_relu": (0.2,), "clamp": (-0.5, 0.75), "div": (2.5,)}
        step = (name, *operand.get(name, (1, 2)[: operands - 1]))
        yield Sample(name, ([*first, step], x, y, z), batch_axis=0)
    swish = [("sigmoid", 0), ("mul", 0, 3), ("tanh", 1), ("mul", 4, 5), ("add", 2)]
    yield Sample("earlier_values", (swish, x, y, z), batch_axis=0)
    many = [step for k in range(8) for step in (("mul", 0.5), ("add", k), ("sub", k, 8 + 3 * k))]
    yield Sample("eight_tensors", (many, *(randn(2, 40) for _ in range(8))), batch_axis=0)
    yield Sample("modulate", (MODULATE, randn(2, 7, 48), randn(2, 1, 48), randn(2, 1, 48)), batch_axis=0)
    mixed = randn(2, 6, 20), randn(6, 1, dtype=torch.float32), randn(20, dtype=torch.bfloat16)
    yield Sample("mixed_dtypes", ([("mul", 1), ("add", 2), ("gelu",)], *mixed))
    for out_dtype in checks.FLOATS:
        yield Sample(f"to_{out_dtype}", ([("silu",)], randn(3, 40)), {"out_dtype": out_dtype}, batch_axis=0)


def _exact_samples(randn: Callable[..., Tensor]) -> Iterator[Sample]:
    """Steps that PyTorch rounds as we do."""
    exact = {"exact": True, "batch_axis": 0}
    add = [("add", 0, 1)]
    for n in (1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000, 1001, 2049, 5000):
        yield Sample(f"width_{n}", (add, randn(3, n), randn(3, n)), **exact)  # type: ignore[arg-type]
        yield Sample(f"bias_{n}", (add, randn(3, 5, n), randn(n)), exact=True)
        yield Sample(f"columns_{n}", (add, randn(2, n, 6), randn(n, 1)), exact=True)
    x, y, z = (randn(2, 12, 9, 7) for _ in range(3))
    for steps in (
        [("add", 1), ("mul", 2), ("sub", 0), ("neg",), ("abs",)],
        [("square",), ("add", 1.0), ("rsqrt",), ("reciprocal",)],
        [("maximum", 1), ("minimum", 2), ("relu",), ("clamp", 0.25, 0.5)],
        [("div", 1.0, 0), ("mul_add", 1, 0.3), ("leaky_relu", 0.1), ("sub", 1.0, 5)],
        [("sub", 1), ("relu",), ("where", 4, 1, 2), ("mul_add", 0.7, -0.1)],
    ):
        name = "_".join(str(step[0]) for step in steps)
        yield Sample(name, (steps, x, y, z), **exact)  # type: ignore[arg-type]
    odd = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, 3e38, -3e38] * 4).to(x)
    for step in ("maximum", "minimum", "add", "mul", "div"):
        yield Sample(f"non_finite_{step}", ([(step, 1)], odd[:, None], odd), exact=True)
    for step in ("abs", "neg", "relu", "rsqrt", "reciprocal", "square"):
        yield Sample(f"non_finite_{step}", ([(step,)], odd), exact=True)
    yield Sample("non_finite_sqrt", ([("sqrt",)], odd))
    yield Sample("non_finite_exp_log", ([("exp", 0), ("log", 0), ("add", 1, 2)], odd))


def _layout_samples(randn: Callable[..., Tensor]) -> Iterator[Sample]:
    nhwc = torch.channels_last
    formats = {"contiguous": torch.contiguous_format, "last": nhwc, "like": torch.preserve_format}
    add = [("add", 0, 1)]
    for C, H, W in ((4, 9, 7), (3, 64, 1), (64, 5, 8), (33, 6, 11), (1, 4, 4), (128, 16, 16)):
        x = randn(2, C, H, W)
        for name, chosen in formats.items():
            for given in (x, x.contiguous(memory_format=nhwc)):
                kept = {"memory_format": chosen}
                label = f"{name}_{C}_{given.stride(1)}"
                yield Sample(f"copy_to_{label}", ([], given), kept, exact=True, batch_axis=0)
                yield Sample(f"add_to_{label}", (add, given, x), kept, exact=True, batch_axis=0)
    whole = randn(4, 10, 12, 6)
    views = {
        "sliced": whole[:, 1:9:2, 2:, 1:],
        "permuted": whole.permute(3, 1, 0, 2),
        "one_off": whole.flatten()[1:],
        "scalar": whole[0, 0, 0, 0],
        "eight_axes": randn(2, 3, 2, 2, 3, 2, 4, 3).permute(5, 0, 3, 7, 2, 4, 6, 1),
        "empty": whole[:0],
        "wide_transpose": randn(300, 500).T,
    }
    for name, view in views.items():
        yield Sample(f"copy_{name}", ([], view), exact=True)
        yield Sample(f"copy_{name}_bfloat16", ([], view), {"out_dtype": torch.bfloat16}, exact=True)
        yield Sample(f"double_{name}", ([("add", 0, 0)], view), exact=True)
        yield Sample(f"add_to_{name}", ([("add", 1)], view, view.clone()), exact=True)
    yield Sample("constant", ([("add", 1.0, 2.0)], randn(3, 5)), exact=True)
    yield Sample("broadcast_both", (add, randn(3, 1, 40), randn(5, 1)), exact=True)


@op(
    check=_check_pointwise,
    samples=_samples,
    dtypes=checks.FLOATS,
    facts=_facts,
    cost=_cost,
    peer=_eager,
)
def pointwise(
    program: Sequence[Step],
    *tensors: Tensor,
    out_dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.preserve_format,
) -> Tensor:
    """Runs a program of elementwise steps on tensors that broadcast, in one pass over memory.

    Values are numbered: tensor k is value k, and the result of step s is value n + s, n being the number of
    tensors. A step is a tuple of its name and its operands. An operand is an int, the number of a value, or a
    float, a constant. Where one operand is missing, the first is the result of the step before; of the first
    step it's tensor 0. The last step's result is the program's; an empty program copies tensor 0.

        pointwise([("add", 0, 1), ("silu",), ("mul", 2)], x, y, z)         # silu(x + y) z
        pointwise([("add", 1, 1.0), ("mul_add", 0, 3, 2)], x, scale, shift)  # x (1 + scale) + shift
        pointwise([], x, out_dtype=torch.bfloat16, memory_format=torch.channels_last)

    Steps of one operand: abs, cos, exp, gelu, gelu_tanh, log, neg, reciprocal, relu, rsqrt, sigmoid, silu,
    sin, sqrt, square, tanh. Of two: add, div, maximum, minimum, mul, sub; leaky_relu (x, slope below zero).
    Of three: clamp (x, low, high), mul_add (x, scale, shift: x scale + shift), where (condition, a, b: a
    unless the condition is zero).

    References:
        A. Paszke et al., "PyTorch: An Imperative Style, High-Performance Deep Learning Library", 2019,
        https://arxiv.org/abs/1912.01703 (broadcasting and the steps' definitions)

    Args:
        program: a list or tuple of steps.
        tensors: one or more, floating, of shapes that broadcast.
        out_dtype: the result's, floating; None for the widest among the tensors.
        memory_format: the result's; torch.preserve_format for the first tensor's where that has the result's
            shape, else contiguous.

    Returns:
        Tensor of the shape that all tensors broadcast to.

    Precision: computed in float32, each step rounded in the order written; a bfloat16 result is rounded once,
        at the end, where PyTorch rounds after each step. Steps of arithmetic (all but those that follow)
        have PyTorch's bits in float32, but for sqrt, which is correctly rounded where PyTorch's (MKL's)
        needn't be; exp, log, sin and cos are within 2 ULP; tanh, sigmoid, silu and gelu as in `bias_act`:
        below -88 sigmoid and silu have 4e-39 and -4e-37 where 0 is exact.

    Memory: the result.

    Raises:
        TypeError: a tensor or `out_dtype` isn't floating, or a step isn't a tuple of a name, ints and floats.
        ValueError: no tensors, shapes that don't broadcast, tensors on several devices, an unknown step, too
            many or too few operands, a value that isn't there yet, channels_last of other than 4 axes.
    """
    dtype = result_dtype(tensors)
    wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    found = _run(
        program,
        [value.to(wide) for value in tensors],
        lambda constant: torch.tensor(constant, dtype=wide, device=tensors[0].device),
    )
    return empty_result(tensors, out_dtype, memory_format).copy_(found)
