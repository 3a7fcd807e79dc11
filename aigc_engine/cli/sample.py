"""`aigc-engine sample`: one model, to a file or the terminal."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from aigc_engine import images, zoo
from aigc_engine.cli import console
from aigc_engine.diffusion.control import Progress
from aigc_engine.load import sampler_of
from aigc_engine.zoo.files import replacing

DEFAULT_IMAGES, DEFAULT_TEXTS = 64, 1
FOLDER = Path("out")
OPTIONS = {
    "diffusion": ("steps", "solver", "guidance", "label", "gif"),
    "gan": ("label", "truncation"),
    "vae": ("label", "truncation"),
    "text": ("prompt", "length", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop"),
}
DEFAULT_LENGTH = 256
SEPARATOR = "---\n"
GIF_MILLISECONDS = 4000


def run(name: str, n: int | None, seed: int, out: Path | None, given: dict[str, Any]) -> None:
    """Samples `name` and writes the result.

    Args:
        n, out: None is the family's usual number and place.
        given: the options that the user gave, by the sampler's name of each.

    Raises:
        ValueError: an option of another family, or a value that the sampler refuses.
    """
    if n is not None and n < 1:
        raise ValueError(f"sample: --n {n}, expected at least 1")
    if out is not None and out.is_dir():
        raise ValueError(f"sample: --out {str(out)!r} is a folder, expected a file; add a file name")
    checkpoint = zoo.load(name)
    family = checkpoint.family
    if family not in OPTIONS:
        raise ValueError(
            f"sample: {name} is a {family}, expected a model that can be sampled; see `aigc-engine models`"
        )
    for option in given:
        if option not in OPTIONS[family]:
            usable = ", ".join(_flag(option) for option in OPTIONS[family])
            raise ValueError(f"sample: {_flag(option)} with a {family} model, expected {usable}")
    if family == "text":
        _texts(sampler_of(checkpoint), n or DEFAULT_TEXTS, seed, out, given)
    else:
        _pictures(checkpoint, n or DEFAULT_IMAGES, seed, out, given)


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _pictures(checkpoint: zoo.Checkpoint, n: int, seed: int, out: Path | None, given: dict[str, Any]) -> None:
    out = out or FOLDER / f"{checkpoint.name}.png"
    images.check_path(out, images.STILLS, "--out")
    gif = given.pop("gif", None)
    if gif is not None:
        images.check_path(gif, (".gif",), "--gif")
    sampler: Any = sampler_of(checkpoint)
    if "label" in given:
        given["label"] = labels(given["label"], n)
    elif checkpoint.family == "diffusion":  # as GANs do: sample i is that of seed + i, its class too
        given["label"] = [(seed + i) % sampler.num_classes for i in range(n)]
    frames: list[Image.Image] = []
    if checkpoint.family == "diffusion":
        with console.progress(f"{n} images") as told:

            def step(progress: Progress) -> None:
                told(progress.step, progress.total)
                if gif is not None:
                    frames.append(picture(progress.preview()))

            samples = sampler.sample(n=n, seed=seed, callback=step, **given)
    else:
        samples = sampler.sample(n=n, seed=seed, **given)
    console.wrote(images.save(picture(samples), out))
    if gif is not None:
        frames.append(picture(samples))
        console.wrote(images.save_gif(frames, gif, frame_ms=max(20, GIF_MILLISECONDS // len(frames))))


def _texts(sampler: Any, n: int, seed: int, out: Path | None, given: dict[str, Any]) -> None:
    prompt = given.pop("prompt", "")
    if out is None and n == 1 and sys.stdout.isatty():
        sys.stdout.write(prompt)
        for piece in sampler.stream(prompt, seed=seed, **given):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return
    done = 0
    with console.progress(f"{n} texts") as told:

        def count(row: int, piece: str) -> None:
            nonlocal done
            done += len(piece)
            told(done, n * given.get("length", DEFAULT_LENGTH))

        texts = sampler.sample(n=n, seed=seed, prompt=prompt, on_token=count, **given)
    written = SEPARATOR.join(f"{prompt}{text}\n" for text in texts)
    if out is None:
        sys.stdout.write(written)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        temporary.write_text(written, encoding="utf-8")
    console.wrote(out)


def picture(samples: Tensor) -> Image.Image:
    """A grid at a size that can be looked at."""
    return images.grid(samples, scale=images.default_scale(samples))


def labels(text: str, n: int) -> list[int] | None:
    """n classes from "7", "1,2,3", "0-9" or a mixture of them, taken in turn; None from "none"."""
    if text == "none":
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise ValueError(f"sample: --label {text!r}, expected numbers such as 7, or 1,2,3, or 0-9")
        first, last = int(match[1]), int(match[2] or match[1])
        found += range(first, last + 1)
    if not found:
        raise ValueError(f"sample: --label {text!r} has no class in it, expected the lower one first, as 0-9")
    return [found[i % len(found)] for i in range(n)]
