"""Images in [-1, 1] to PNG grids and GIFs.

A file is complete or absent: it's written beside its place, then renamed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aigc_engine.zoo.files import replacing

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
STILLS = (".png", ".jpg", ".jpeg", ".webp")


def to_pixels(images: Tensor) -> np.ndarray:
    """Rounds images to bytes: -1 becomes 0, 1 becomes 255, what lies outside is clamped.

    Args:
        images: (n, C, H, W) floating, C = 1 (grey), 3 (RGB) or 4 (RGBA).

    Returns:
        uint8 array (n, H, W, C).

    Raises:
        TypeError: not floating. ValueError: another shape, or NaN or Inf.
    """
    if not images.is_floating_point():
        raise TypeError(
            f"to_pixels: images {images.dtype}, expected floating in [-1, 1]; bytes / 127.5 - 1 is"
        )
    if images.ndim != 4 or images.shape[1] not in MODES or 0 in images.shape:
        raise ValueError(
            f"to_pixels: images {tuple(images.shape)}, expected (n, 1, 3 or 4, H, W); add the missing axes"
        )
    if not torch.isfinite(images).all():
        raise ValueError(
            "to_pixels: images hold NaN or Inf, expected finite values; look at the sampler's output"
        )
    scaled = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def tiles(images: Tensor, scale: int = 1) -> list[Image.Image]:
    """One picture per image, each pixel drawn as scale x scale pixels."""
    pixels = to_pixels(images)
    n, H, W, C = pixels.shape
    pictures = [Image.fromarray(picture[..., 0] if C == 1 else picture, MODES[C]) for picture in pixels]
    return [picture.resize((W * scale, H * scale), Image.Resampling.NEAREST) for picture in pictures]


def grid(
    images: Tensor, columns: int | None = None, *, scale: int = 1, gap: int = 2, shade: int = 0
) -> Image.Image:
    """Lays images out in rows, first to last.

    Args:
        images: (n, C, H, W) in [-1, 1].
        columns: images per row; None makes the grid as square as n allows.
        scale: whole factor of enlargement.
        gap: pixels between the images and around them.
        shade: brightness of the gaps, 0 to 255.
    """
    if columns is not None and columns < 1:
        raise ValueError(f"grid: columns {columns}, expected at least 1")
    if scale < 1 or gap < 0:
        raise ValueError(f"grid: scale {scale}, gap {gap}, expected scale >= 1 and gap >= 0")
    pictures = tiles(images, scale)
    columns = min(len(pictures), columns or math.ceil(math.sqrt(len(pictures))))
    width, height = pictures[0].size
    rows = math.ceil(len(pictures) / columns)
    mode = pictures[0].mode
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    sheet = Image.new(mode, size, shade if mode == "L" else (shade, shade, shade, 255)[: len(mode)])
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


def default_scale(images: Tensor, target: int = 112) -> int:
    """The enlargement that brings small images near `target` pixels, a useful size in a viewer."""
    return max(1, target // max(images.shape[-2:]))


def check_path(path: str | Path, suffixes: Sequence[str], argument: str = "out") -> Path:
    """The path, if its suffix is one of `suffixes`; asked before the work, not after it."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(
            f"{argument}: {str(path)!r} ends in {path.suffix!r}, expected one of {', '.join(suffixes)}"
        )
    if path.is_dir():
        raise ValueError(f"{argument}: {str(path)!r} is a folder, expected a file; add a file name")
    return path


def save(picture: Image.Image, path: str | Path) -> Path:
    """Writes a picture whole or not at all; missing folders are made."""
    path = check_path(path, STILLS)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in (".jpg", ".jpeg") and picture.mode == "RGBA":
        picture = picture.convert("RGB")
    with replacing(path) as temporary:
        picture.save(temporary, format=Image.registered_extensions()[path.suffix.lower()], optimize=True)
    return path


def save_gif(
    frames: Sequence[Image.Image], path: str | Path, *, frame_ms: int = 60, last_ms: int = 1500
) -> Path:
    """Writes an animation that repeats for ever and rests on its last frame.

    Args:
        frames: pictures of one size, at least one.
        frame_ms, last_ms: how long a frame, and the last one, stay, in milliseconds.
    """
    if not frames:
        raise ValueError("save_gif: no frames, expected at least one")
    path = check_path(path, (".gif",), "gif")
    path.parent.mkdir(parents=True, exist_ok=True)
    durations = [frame_ms] * (len(frames) - 1) + [last_ms]
    first, *others = frames
    with replacing(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)
    return path
