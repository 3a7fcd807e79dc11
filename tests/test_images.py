"""Pictures: values, layout, and files that are whole or absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aigc_engine import images


def ramp(n: int = 5, channels: int = 1, height: int = 3, width: int = 4) -> torch.Tensor:
    return torch.linspace(-1, 1, n * channels * height * width).reshape(n, channels, height, width)


def test_pixels_are_rounded_and_clamped() -> None:
    x = torch.tensor([-7.0, -1.0, 0.0, 1.0, 7.0]).reshape(1, 1, 1, 5)
    assert images.to_pixels(x).ravel().tolist() == [0, 0, 128, 255, 255]
    every = torch.arange(256, dtype=torch.float32) / 127.5 - 1
    assert images.to_pixels(every.reshape(1, 1, 16, 16)).ravel().tolist() == list(range(256))
    assert images.to_pixels(ramp().bfloat16()).dtype == np.uint8


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), TypeError, r"images torch\.uint8, expected floating"),
        (torch.zeros(1, 3, 3), ValueError, r"images \(1, 3, 3\), expected \(n, 1, 3 or 4, H, W\)"),
        (torch.zeros(1, 2, 3, 3), ValueError, "expected"),
        (torch.zeros(0, 1, 3, 3), ValueError, "expected"),
        (torch.full((1, 1, 2, 2), torch.nan), ValueError, "NaN or Inf"),
    ],
)
def test_what_is_no_image_is_refused(value: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        images.to_pixels(value)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grid_puts_each_image_in_its_place(channels: int) -> None:
    x = ramp(5, channels)
    sheet = np.asarray(images.grid(x, 3, scale=2, gap=1, shade=99)).reshape(15, 28, channels)
    pixels = images.to_pixels(x)
    for index in range(5):
        row, column = divmod(index, 3)
        top, left = 1 + 7 * row, 1 + 9 * column
        tile = sheet[top : top + 6, left : left + 8]
        assert (tile == pixels[index].repeat(2, 0).repeat(2, 1)).all()
    assert (sheet[8:14, 19:27, :3] == 99).all(), "the place of the sixth stays empty"
    assert (sheet[0, :, :3] == 99).all() and (sheet[:, 0, :3] == 99).all()


def test_grid_is_as_square_as_it_can_be() -> None:
    assert images.grid(ramp(7), gap=0).size == (3 * 4, 3 * 3)
    assert images.grid(ramp(2), columns=8, gap=0).size == (2 * 4, 3)
    with pytest.raises(ValueError, match="columns 0"):
        images.grid(ramp(), columns=0)


def test_saved_picture_comes_back(tmp_path: Path) -> None:
    path = images.save(images.grid(ramp()), tmp_path / "new" / "folder" / "grid.png")
    with Image.open(path) as again:
        assert (np.asarray(again) == np.asarray(images.grid(ramp()))).all()
    images.save(images.grid(ramp(4, 4)), tmp_path / "grid.jpg")
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]


def test_gif_keeps_its_frames_and_rests_on_the_last(tmp_path: Path) -> None:
    frames = [images.grid(ramp(1) * k / 3) for k in range(4)]
    path = images.save_gif(frames, tmp_path / "a.gif", frame_ms=50, last_ms=900)
    with Image.open(path) as again:
        assert again.n_frames == 4
        again.seek(3)
        assert again.info["duration"] == 900
    with pytest.raises(ValueError, match="no frames"):
        images.save_gif([], tmp_path / "b.gif")


@pytest.mark.parametrize("name", ["grid.txt", "grid", "grid.gif"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"expected one of \.png"):
        images.save(images.grid(ramp()), tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        images.save(images.grid(ramp()), tmp_path / "folder.png")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = images.save(images.grid(ramp()), tmp_path / "grid.png")
    before = path.read_bytes()

    def full(self: Image.Image, target: Path, **options: object) -> None:
        target.write_bytes(b"half a pict")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        images.save(images.grid(ramp(2)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
