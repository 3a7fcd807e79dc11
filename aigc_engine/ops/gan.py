"""Resampling with a FIR filter and modulated convolution: what StyleGAN generators are made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.ops import checks
from aigc_engine.testing import Sample

Factor = int | Sequence[int]


def _factors(name: str, argument: str, value: Factor) -> tuple[int, int]:
    """(x, y) of a factor given once or per axis."""
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= 1 for v in pair):
        raise ValueError(f"{name}: {argument} {value!r}, expected an int >= 1 or two of them (x, y)")
    return pair[0], pair[1]


def _margins(name: str, value: Factor) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) of a padding given once, per axis, or per side."""
    sides = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(sides) not in (1, 2, 4) or not all(isinstance(v, int) for v in sides):
        raise ValueError(f"{name}: padding {value!r}, expected an int, (x, y) or (left, right, top, bottom)")
    if len(sides) == 4:
        return sides[0], sides[1], sides[2], sides[3]
    x, y = sides[0], sides[-1]
    return x, x, y, y


def _check_kernel(name: str, kernel: object, x: Tensor) -> None:
    checks.floating(name, "kernel", kernel)
    assert isinstance(kernel, Tensor)
    checks.rank(name, "kernel", kernel, 1, 2)
    if 0 in kernel.shape:
        raise ValueError(f"{name}: kernel shape {tuple(kernel.shape)}, expected at least one tap")
    if kernel.device != x.device:
        raise ValueError(f"{name}: kernel on {kernel.device}, expected {x.device} as x; move one of them")


def _taps(kernel: Tensor) -> tuple[int, int]:
    """(K_y, K_x) of a kernel; one vector serves both axes."""
    return kernel.shape[0], kernel.shape[-1]


def _check_upfirdn2d(
    x: Tensor,
    kernel: Tensor,
    *,
    up: Factor = 1,
    down: Factor = 1,
    padding: Factor = 0,
    flip: bool = False,
    gain: float = 1.0,
) -> None:
    checks.floating("upfirdn2d", "x", x)
    checks.rank("upfirdn2d", "x", x, 4, 4)
    _check_kernel("upfirdn2d", kernel, x)
    up_xy = _factors("upfirdn2d", "up", up)
    _factors("upfirdn2d", "down", down)
    left, right, top, bottom = _margins("upfirdn2d", padding)
    if not math.isfinite(gain):
        raise ValueError(f"upfirdn2d: gain {gain}, expected a finite number")
    width = x.shape[3] * up_xy[0] + left + right
    height = x.shape[2] * up_xy[1] + top + bottom
    taps = _taps(kernel)
    if width < taps[1] or height < taps[0]:
        raise ValueError(
            f"upfirdn2d: x is {height} x {width} after up and padding, expected at least the kernel's "
            f"{taps[0]} x {taps[1]}; pad more"
        )


def _randn(generator: torch.Generator, dtype: torch.dtype, device: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator).to(device, dtype)


def _samples_upfirdn2d(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)
    binomial = torch.tensor([1.0, 3.0, 3.0, 1.0], device=device) / 8
    square = torch.randn(3, 5, generator=g).to(device)
    for size in (1, 15, 16, 17, 31, 33, 65):
        x = _randn(g, dtype, device, 2, 3, 5, size)
        yield Sample(f"blur_{size}", (x, binomial), {"padding": (2, 1, 2, 1)}, batch_axis=0)
        yield Sample(
            f"up_{size}", (x, binomial), {"up": 2, "padding": (2, 1, 2, 1), "gain": 4.0}, batch_axis=0
        )
        yield Sample(f"down_{size}", (x, square), {"down": 2, "padding": 2}, batch_axis=0)
    x = _randn(g, dtype, device, 2, 3, 9, 11)
    yield Sample("rational", (x, square), {"up": (3, 2), "down": (2, 1), "padding": (4, 3)}, batch_axis=0)
    yield Sample("cropped", (x, square), {"up": 2, "padding": (-1, 2, 3, -2), "flip": True}, batch_axis=0)
    yield Sample("strided", (x[:, :, ::2, 1:], binomial), {"padding": 2}, batch_axis=0)
    nhwc = x.contiguous(memory_format=torch.channels_last)
    yield Sample("channels_last", (nhwc, binomial), {"up": 2, "padding": 2}, batch_axis=0)
    yield Sample("empty", (x[:0], binomial), {"padding": 2})
    whole = torch.randint(-4, 5, (2, 3, 6, 7), generator=g).to(device, dtype)
    taps = torch.tensor([1.0, -2.0, 3.0], device=device)
    yield Sample("integers", (whole, taps), {"up": 2, "padding": 2}, exact=True, batch_axis=0)
    big = _randn(g, dtype, device, 4, 128, 128, 128)
    yield Sample(
        "stylegan2_256px_up", (big, binomial), {"up": 2, "padding": (2, 1, 2, 1), "gain": 4.0}, bench=True
    )


def _cost_upfirdn2d(
    x: Tensor, kernel: Tensor, *, up: Factor = 1, down: Factor = 1, padding: Factor = 0, **_: object
) -> tuple[float, float]:
    """FLOPs by polyphase filtering (inserted zeros cost nothing), and bytes read and written once."""
    (up_x, up_y), (down_x, down_y) = _factors("upfirdn2d", "up", up), _factors("upfirdn2d", "down", down)
    left, right, top, bottom = _margins("upfirdn2d", padding)
    taps_y, taps_x = _taps(kernel)
    rows = (x.shape[2] * up_y + top + bottom - taps_y) // down_y + 1
    columns = (x.shape[3] * up_x + left + right - taps_x) // down_x + 1
    out = x.shape[0] * x.shape[1] * rows * columns
    vertical, horizontal = taps_y / up_y, taps_x / up_x
    taps = vertical + horizontal if kernel.ndim == 1 else vertical * horizontal
    return 2.0 * out * taps, float((x.numel() + out) * x.element_size())


@op(
    check=_check_upfirdn2d,
    samples=_samples_upfirdn2d,
    dtypes=checks.FLOATS,
    facts=lambda *args, **kwargs: {},
    cost=_cost_upfirdn2d,
)
def upfirdn2d(
    x: Tensor,
    kernel: Tensor,
    *,
    up: Factor = 1,
    down: Factor = 1,
    padding: Factor = 0,
    flip: bool = False,
    gain: float = 1.0,
) -> Tensor:
    r"""Upsamples by zeros, pads, convolves each channel with a FIR filter, and keeps every `down`-th sample.

    .. math:: y[i] = \text{gain} \sum_k h[k]\, u[\text{down} \cdot i + K - 1 - k], \quad
        u = \text{pad}(x \text{ with } \text{up} - 1 \text{ zeros after each sample})

    along both axes: a true convolution; `flip` makes it a correlation, h[k] u[down i + k].

    References:
        T. Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020,
        https://arxiv.org/abs/1912.04958
        T. Karras et al., "Alias-Free Generative Adversarial Networks", 2021, https://arxiv.org/abs/2106.12423

    Args:
        x: (B, C, H, W) floating.
        kernel: h, (K_y, K_x), or (K,) for the separable filter h[k_y] h[k_x]; floating, on x's device.
        up, down: int >= 1, or (x, y).
        padding: zeros beside the upsampled image (negative crops): int, (x, y), (left, right, top, bottom).
        flip: correlate instead of convolve.
        gain: factor on the result; up_x up_y keeps the mean of an upsampled image.

    Returns:
        (B, C, (up_y H + top + bottom - K_y) // down_y + 1, the same for W) in x's dtype.

    Precision: computed in float32, rounded once.

    Raises:
        TypeError: x or kernel isn't floating.
        ValueError: another rank, a factor below 1, or a padded image smaller than the kernel.
    """
    (up_x, up_y), (down_x, down_y) = _factors("upfirdn2d", "up", up), _factors("upfirdn2d", "down", down)
    B, C, H, W = x.shape
    u = x.float() if x.dtype == torch.bfloat16 else x
    u = F.pad(u.reshape(B, C, H, 1, W, 1), (0, up_x - 1, 0, 0, 0, up_y - 1)).reshape(B, C, H * up_y, W * up_x)
    u = F.pad(u, _margins("upfirdn2d", padding))
    h = kernel.to(u.dtype)
    h = h if flip else h.flip(list(range(h.ndim)))
    if h.ndim == 1:
        h = torch.outer(h, h)
    y = F.conv2d(u, h.expand(C, 1, *h.shape), stride=(down_y, down_x), groups=C)
    return (y * gain).to(x.dtype)


def _check_modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    *,
    noise: Tensor | None = None,
    demodulate: bool = True,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    kernel: Tensor | None = None,
    eps: float = 1e-8,
) -> None:
    name = "modulated_conv2d"
    checks.floating(name, "x", x)
    checks.rank(name, "x", x, 4, 4)
    checks.floating(name, "weight", weight)
    checks.rank(name, "weight", weight, 4, 4)
    checks.same(name, "weight", weight, "x", x)
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"{name}: weight has {weight.shape[1]} input channels, expected {x.shape[1]} as x")
    checks.tensor(name, "styles", styles)
    checks.same(name, "styles", styles, "x", x)
    checks.shape(name, "styles", styles, (x.shape[0], x.shape[1]))
    for argument, value in (("up", up), ("down", down)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: {argument} {value!r}, expected an int >= 1")
    if not isinstance(padding, int) or padding < 0:
        raise ValueError(f"{name}: padding {padding!r}, expected an int >= 0")
    if not eps > 0:
        raise ValueError(f"{name}: eps {eps}, expected above 0")
    if kernel is not None:
        _check_kernel(name, kernel, x)
    elif up > 1 or down > 1:
        raise ValueError(f"{name}: kernel None with up {up} and down {down}, expected a FIR filter; give one")
    if noise is not None:
        checks.tensor(name, "noise", noise)
        checks.same(name, "noise", noise, "x", x)


def _samples_modulated_conv2d(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)
    binomial = torch.tensor([1.0, 3.0, 3.0, 1.0], device=device) / 8

    def arguments(B: int, C_in: int, C_out: int, size: int, K: int) -> tuple[Tensor, Tensor, Tensor]:
        weight = _randn(g, dtype, device, C_out, C_in, K, K)
        return _randn(g, dtype, device, B, C_in, size, size), weight, _randn(g, dtype, device, B, C_in) + 1

    for channels in (1, 15, 16, 17, 33):
        given = arguments(2, channels, channels + 3, 5, 3)
        yield Sample(f"channels_{channels}", given, {"padding": 1}, batch_axis=0)
    given = arguments(2, 8, 6, 7, 3)
    yield Sample("up", given, {"up": 2, "padding": 1, "kernel": binomial}, batch_axis=0)
    yield Sample("down", given, {"down": 2, "padding": 1, "kernel": binomial}, batch_axis=0)
    yield Sample("noise", given, {"padding": 1, "noise": _randn(g, dtype, device, 2, 1, 7, 7)}, batch_axis=0)
    yield Sample("to_rgb", arguments(2, 16, 3, 9, 1), {"demodulate": False}, batch_axis=0)
    nhwc = given[0].contiguous(memory_format=torch.channels_last)
    yield Sample("channels_last", (nhwc, *given[1:]), {"padding": 1}, batch_axis=0)
    yield Sample("stylegan2_64px", arguments(4, 512, 512, 64, 3), {"padding": 1}, bench=True)


def _cost_modulated_conv2d(
    x: Tensor, weight: Tensor, styles: Tensor, *, up: int = 1, down: int = 1, padding: int = 0, **_: object
) -> tuple[float, float]:
    """FLOPs of the convolution on the grid that needs fewest, and bytes read and written once."""
    grid = x.shape[2] * x.shape[3] / down**2
    out = x.shape[0] * weight.shape[0] * grid * up**2
    return 2.0 * x.shape[0] * grid * weight.numel(), (x.numel() + weight.numel() + out) * x.element_size()


@op(
    check=_check_modulated_conv2d,
    samples=_samples_modulated_conv2d,
    dtypes=checks.FLOATS,
    facts=lambda *args, **kwargs: {},
    cost=_cost_modulated_conv2d,
)
def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    *,
    noise: Tensor | None = None,
    demodulate: bool = True,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    kernel: Tensor | None = None,
    eps: float = 1e-8,
) -> Tensor:
    r"""Convolution whose weights are scaled per sample and input channel, then normalised per output channel.

    .. math:: w'_{boikl} = s_{bi} w_{oikl} \Big/ \sqrt{\textstyle\sum_{ikl} (s_{bi} w_{oikl})^2 + \epsilon},
        \quad y_b = w'_b * x_b + \text{noise}

    Computed with one weight for all samples: s scales the input and the normalisation scales the output,
    which is the same function because both are constant over the image.

    References:
        T. Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020,
        https://arxiv.org/abs/1912.04958

    Args:
        x: (B, I, H, W) floating.
        weight: w, (O, I, K_y, K_x) in x's dtype.
        styles: s, (B, I) in x's dtype.
        noise: added to the result, broadcastable to it, e.g. (B, 1, H', W'); or None.
        demodulate: divide by the norm.
        up: the image is upsampled by `up` with `kernel` (gain up^2) before the convolution.
        down: the result is downsampled by `down` with `kernel`.
        padding: zeros beside the image that is convolved, on each side; (K - 1) / 2 keeps its size.
        kernel: FIR filter of `upfirdn2d`, needed with up or down above 1.
        eps: > 0, keeps a norm of zero finite.

    Returns:
        (B, O, H', W') in x's dtype; H' = up H / down for padding (K - 1) / 2 and divisible sizes.

    Precision: computed in float32, rounded once.

    Raises:
        TypeError: x isn't floating, or weight, styles or noise have another dtype.
        ValueError: shapes that don't fit, up or down below 1, or no kernel to resample with.
    """
    wide = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
    w, s = weight.to(wide), styles.to(wide)
    h = x.to(wide) * s[:, :, None, None]
    margin = [padding] * 4
    if kernel is not None:
        # The filter's own width, shared out so that the samples keep their places.
        for side, taps in ((0, _taps(kernel)[1]), (2, _taps(kernel)[0])):
            if up > 1:
                margin[side] += (taps + up - 1) // 2
                margin[side + 1] += (taps - up) // 2
            if down > 1:
                margin[side] += (taps - down + 1) // 2
                margin[side + 1] += (taps - down) // 2
    if kernel is not None and up > 1:
        h = upfirdn2d.reference(h, kernel, up=up, padding=margin, gain=float(up**2))
    else:
        h = F.pad(h, margin)
    y = F.conv2d(h, w)
    if kernel is not None and down > 1:
        y = upfirdn2d.reference(y, kernel, down=down)
    if demodulate:
        norm = s.square() @ w.square().sum((2, 3)).T + eps  # (B, O)
        y = y * norm.rsqrt()[:, :, None, None]
    if noise is not None:
        y = y + noise.to(wide)
    return y.to(x.dtype)
