"""The commands' names and options; each command's work is in a module of its own."""

from __future__ import annotations

import functools
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import aigc_engine
from aigc_engine.cli import bench as bench_command
from aigc_engine.cli import console, zoo_table
from aigc_engine.cli import demo as demo_command
from aigc_engine.cli import evaluate as evaluate_command
from aigc_engine.cli import sample as sample_command
from aigc_engine.cli import train as train_command
from aigc_engine.dispatch import UnsupportedError

USER_ERRORS = (ValueError, UnsupportedError, OSError)
INTERRUPTED, WRONG_USE = 130, 2
EPIPE = 32

app = typer.Typer(
    name="aigc-engine",
    help="Fast sampling from generative models: diffusion, GAN, VAE, text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of `aigc-engine`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    app()


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Registers a command whose user errors become one line, and whose Ctrl-C becomes exit status 130."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            console.errors.print("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except USER_ERRORS as error:
            if isinstance(error, OSError) and error.errno == EPIPE:
                raise
            if console.options.traceback:
                traceback.print_exc()
            console.errors.print(f"[red]error:[/red] {console.escape(str(error))}", soft_wrap=True)
            raise typer.Exit(WRONG_USE) from None

    app.command()(run)
    return run


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"aigc-engine {aigc_engine.__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
) -> None:
    console.options.traceback = traceback


@command
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures and texts.")] = Path(
        "out"
    ),
) -> None:
    """Sample every family of the zoo, and time it beside plain PyTorch."""
    demo_command.run(out)


@command
def models() -> None:
    """List the bundled models: family, size, data and measured quality."""
    console.out.print(zoo_table.table())


@command
def sample(
    name: Annotated[str, typer.Argument(help="A zoo model (`aigc-engine models`) or a checkpoint folder.")],
    n: Annotated[int | None, typer.Option("--n", "-n", help="Samples; default 64 images, 1 text.")] = None,
    seed: Annotated[int, typer.Option(help="Sample i is the one sample of seed + i.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File; default out/NAME.png, or stdout.")
    ] = None,
    gif: Annotated[Path | None, typer.Option(help="Diffusion: also an animation of the denoising.")] = None,
    steps: Annotated[int | None, typer.Option(help="Diffusion: denoising steps.")] = None,
    solver: Annotated[
        str | None, typer.Option(help="Diffusion: ddpm, ddim, euler, heun, dpmpp_2m, ...")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Diffusion: guidance scale, 1 is none.")] = None,
    label: Annotated[
        str | None, typer.Option(help="Classes, taken in turn: 7, or 1,2,3, or 0-9, or none.")
    ] = None,
    truncation: Annotated[
        float | None, typer.Option(help="GAN, VAE: spread of the latents, 1 is all.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Text: what to go on from.")] = None,
    length: Annotated[int | None, typer.Option(help="Text: most characters to write.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Text: 0 always takes the likeliest.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Text: only the k likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Text: only the likeliest that make up p.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Text: only those with this share of the best.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Text: above 1, avoid what was said.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text: end at this; may be repeated.")] = None,
) -> None:
    """Sample from a model: images to a PNG grid, text to the terminal."""
    options = {
        "steps": steps,
        "solver": solver,
        "guidance": guidance,
        "label": label,
        "truncation": truncation,
        "prompt": prompt,
        "length": length,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop or None,
        "gif": gif,
    }
    given = {option: value for option, value in options.items() if value is not None}
    sample_command.run(name, n, seed, out, given)


@command
def train(
    recipe: Annotated[str | None, typer.Argument(help="A recipe; without one they are listed.")] = None,
    data: Annotated[Path | None, typer.Option(help="The training data (see the list of recipes).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the checkpoint; default runs/RECIPE.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted run.")] = False,
    threads: Annotated[int | None, typer.Option(help="Torch threads.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
) -> None:
    """Train a model of the zoo from its recipe."""
    train_command.run(recipe, data, out, resume=resume, threads=threads, seed=seed)


@command
def evaluate(
    names: Annotated[list[str] | None, typer.Argument(help="Zoo names or folders; all without one.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Images drawn from each model.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the first image.")] = 0,
) -> None:
    """Measure the models: recognised digits, coverage, Frechet distance, bits per character."""
    raise typer.Exit(evaluate_command.run(names or None, n, seed))


@command
def info() -> None:
    """Say which backend serves each op on this machine, and why the others don't."""
    from aigc_engine.info import main as report

    report()


@command
def bench(
    group: Annotated[str, typer.Argument(help="ops, int8, step, diffusion, text, gan, vae or all.")] = "all",
    only: Annotated[list[str] | None, typer.Option(help="Word in the case's name; may be repeated.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the cases.")] = False,
    threads: Annotated[int | None, typer.Option(help="Torch and native threads.")] = None,
    save: Annotated[bool, typer.Option(help="Write a record to bench/results.")] = False,
    plot: Annotated[bool, typer.Option(help="Draw a roofline, also into bench/results.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The picture's file; implies --plot.")
    ] = None,
) -> None:
    """Time the engine beside its peers, both in turn (needs the source checkout)."""
    options: dict[str, Any] = {"list_only": list_, "threads": threads, "save": save, "plot": plot, "out": out}
    raise typer.Exit(bench_command.run(group, only or [], **options))
