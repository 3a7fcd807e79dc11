"""`aigc-engine demo`: every family of the zoo, in pictures and beside plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.table import Table
from torch import Tensor

from aigc_engine import baselines, images, zoo
from aigc_engine.cli import console
from aigc_engine.cli.overview import TILES_PER_ROW, Passage, Strip, overview
from aigc_engine.cli.sample import picture
from aigc_engine.diffusion import Progress
from aigc_engine.evaluate.held_out import held_out_digits
from aigc_engine.load import sampler_of
from aigc_engine.timing import Timing, paired
from aigc_engine.zoo.files import replacing

DIGITS, TIMED_DIGITS, STEPS = 64, 16, 50
ENDS = 2, 42  # seeds of the same class, the digit two
PROMPT, LENGTH, TEMPERATURE = "And God said", 400, 0.6
SECONDS, FEWEST = 2.0, 3
ROW = TILES_PER_ROW


@dataclass(frozen=True)
class Line:
    """A line of the final table; `error` says how far the two results differ."""

    family: str
    what: str
    against: str
    timing: Timing
    error: str


@dataclass
class Show:
    """What the demo has made so far."""

    folder: Path
    written: list[Path] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    strips: dict[str, list[Strip]] = field(default_factory=dict)
    passages: list[Passage] = field(default_factory=list)

    def picture(self, name: str, image: Image.Image) -> None:
        self.written.append(images.save(image, self.folder / name))

    def strip(self, family: str, heading: str, note: str, samples: Tensor) -> None:
        self.strips.setdefault(family, []).append(Strip(heading, note, samples))

    def compare(
        self,
        checkpoint: zoo.Checkpoint,
        what: str,
        against: str,
        ours: Callable[[], Any],
        theirs: Callable[[], Any],
    ) -> None:
        """Runs both, notes how far they differ, and times them in turn."""
        mine, other = ours(), theirs()
        if isinstance(mine, Tensor):
            error = f"{(mine - other).abs().max().item():.1e}"
        else:
            error = "same text" if mine == other else "texts differ"
        timing = paired(ours, theirs, seconds=SECONDS, fewest=FEWEST)
        self.lines.append(Line(checkpoint.name, what, against, timing, error))


def run(folder: Path) -> None:
    """Samples everything, writes it to `folder`, and prints the table and the paths."""
    show = Show(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[Show, zoo.Checkpoint], None]] = {
        "digits-diffusion": diffusion,
        "digits-gan": gan,
        "digits-mlp-gan": gan,
        "digits-vae": vae,
        "text-transformer": text,
        "text-lstm": text,
    }
    for number, (name, part) in enumerate(parts.items(), 1):
        console.errors.print(f"{number}/{len(parts)} {name}")
        part(show, zoo.load(name))
    everything = overview(
        "aigc_engine",
        "Everything here was sampled on a CPU by `make demo`, from networks of 0.2 to 1.8 million weights.",
        [show.strips[family] for family in ("diffusion", "gan", "vae")],
        show.passages,
    )
    show.picture("overview.png", everything.quantize(128, dither=Image.Dither.NONE))
    console.out.print(_table(show.lines))
    for path in show.written:
        console.out.print(console.escape(str(path)), soft_wrap=True)


def diffusion(show: Show, checkpoint: zoo.Checkpoint) -> None:
    """64 digits with their animation, then both ways of sampling them in turn."""
    sampler = sampler_of(checkpoint)
    guidance = checkpoint.config["sampling"]["guidance"]
    labels = [i % 10 for i in range(DIGITS)]
    sample = partial(sampler.sample, seed=0, steps=STEPS, solver="ddim", guidance=guidance)
    previews: list[Tensor] = []
    with console.progress(f"{checkpoint.name}: {DIGITS} digits, {STEPS} steps") as told:

        def step(progress: Progress) -> None:
            told(progress.step, progress.total)
            previews.append(progress.preview())

        samples = sample(label=labels, callback=step)
    show.picture(f"{checkpoint.name}.png", picture(samples))
    frames = [images.grid(x, scale=2) for x in [*previews, samples]]
    show.written.append(images.save_gif(frames, show.folder / f"{checkpoint.name}.gif", frame_ms=80))
    show.strip("diffusion", "Diffusion", f"DDIM, {STEPS} steps, guidance {guidance:g}", samples[: 5 * ROW])
    # Denser where more happens: most of a digit is decided in the first steps.
    chosen = [round((STEPS - 1) * (k / (ROW - 1)) ** 2) for k in range(ROW)]
    shown = torch.cat([previews[k][digit, None] for digit in (3, 8) for k in chosen])
    show.strip("diffusion", "Denoising", f"the estimate of x0 after {ROW} of the steps", shown)
    fewer = labels[:TIMED_DIGITS]
    theirs = baselines.ddim(checkpoint, fewer, steps=STEPS, guidance=guidance)
    what = f"{TIMED_DIGITS} digits, {STEPS} DDIM steps"
    show.compare(checkpoint, what, "plain loop", partial(sample, label=fewer), theirs)


def gan(show: Show, checkpoint: zoo.Checkpoint) -> None:
    """A grid, the way between two latents, and both ways of generating 512 digits in turn."""
    sampler: Any = sampler_of(checkpoint)
    samples = sampler.sample(n=DIGITS, seed=0)
    show.picture(f"{checkpoint.name}.png", picture(samples))
    between = sampler.interpolate(*ENDS, n=ROW)
    show.picture(f"{checkpoint.name}-interpolation.png", images.grid(between, ROW, scale=4))
    conditional = sampler.num_classes is not None
    note = "DCGAN, by class" if conditional else "plain MLP, no classes"
    show.strip("gan", "GAN", note, samples[: (3 if conditional else 2) * ROW])
    if conditional:
        show.strip("gan", "Between two latents", "", between)
    n = 512
    ours = partial(sampler.sample, n=n, seed=0)
    show.compare(checkpoint, f"{n} digits", "plain module", ours, baselines.generate(checkpoint, n))


def vae(show: Show, checkpoint: zoo.Checkpoint) -> None:
    """Samples, held-out digits with their reconstructions, and the way between two of them."""
    sampler: Any = sampler_of(checkpoint)
    samples = sampler.sample(n=DIGITS, seed=0)
    show.picture(f"{checkpoint.name}.png", picture(samples))
    real = held_out_digits()[0][:ROW]
    pairs = torch.cat([real, sampler.reconstruct(real)])
    show.picture(f"{checkpoint.name}-reconstruction.png", images.grid(pairs, ROW, scale=4))
    between = sampler.interpolate(real[3], real[8], n=ROW)
    show.picture(f"{checkpoint.name}-interpolation.png", images.grid(between, ROW, scale=4))
    show.strip("vae", "VAE", "samples", samples[: 3 * ROW])
    show.strip("vae", "Reconstruction", "held-out digits above", pairs)
    show.strip("vae", "Between two digits", "", between)
    n = 512
    ours = partial(sampler.sample, n=n, seed=0)
    show.compare(checkpoint, f"{n} digits", "plain module", ours, baselines.generate(checkpoint, n))


def text(show: Show, checkpoint: zoo.Checkpoint) -> None:
    """A text, and writing it with and without the cache in turn."""
    sampler: Any = sampler_of(checkpoint)
    sample = partial(sampler.sample, prompt=PROMPT, length=LENGTH, seed=0, temperature=TEMPERATURE)
    (written,) = sample()
    path = show.folder / f"{checkpoint.name}.txt"
    with replacing(path) as temporary:
        temporary.write_text(f"{PROMPT}{written}\n", encoding="utf-8")
    show.written.append(path)
    weights = sum(p.numel() for p in checkpoint.model.parameters())
    note = f"{weights / 1e6:.1f} M weights, by character, temperature {TEMPERATURE:g}"
    show.passages.append(Passage(checkpoint.config["arch"], note, PROMPT, written))
    ours = partial(sample, length=256)
    theirs = baselines.on_reference(partial(ours, use_cache=False))
    show.compare(checkpoint, "256 characters", "no cache", ours, theirs)


def _table(lines: list[Line]) -> Table:
    title = f"engine and plain PyTorch in turn, medians; {torch.get_num_threads()} threads"
    table = Table("model", "job", "engine", "reference", "which is", "ratio", "max abs error", title=title)
    for line in lines:
        ratio = f"{line.timing.ratio:.2f}x"
        ours, theirs = _seconds(line.timing.our_median), _seconds(line.timing.their_median)
        table.add_row(line.family, line.what, ours, theirs, line.against, ratio, line.error)
    return table


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"
