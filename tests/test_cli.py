"""The command line: what it writes, what it says about mistakes, and how it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from aigc_engine import images, zoo
from aigc_engine.cli.app import app
from aigc_engine.cli.overview import Passage, Strip, overview, wrap
from aigc_engine.cli.sample import labels
from aigc_engine.load import load
from aigc_engine.models.gan import MLPGenerator
from aigc_engine.models.lstm import LSTM
from aigc_engine.models.unet import UNet

VOCABULARY = "\n abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small untrained checkpoints."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    unet: dict[str, Any] = {
        "image_size": 8,
        "widths": [8],
        "depths": [1],
        "heads": 2,
        "groups": 2,
        "embedding": 16,
    }
    sampling = {"solver": "ddim", "steps": 6, "guidance": 1.0, "spacing": "trailing"}
    trained = {"schedule": {"name": "cosine", "timesteps": 100}, "prediction": "v", "sampling": sampling}
    save(folder / "unet", UNet(**unet), "diffusion", unet, **trained)
    gan: dict[str, Any] = {"latent_dim": 8, "widths": [16], "image_shape": [3, 6, 6]}
    save(folder / "gan", MLPGenerator(**gan), "gan", gan)
    lstm: dict[str, Any] = {"vocabulary": VOCABULARY, "embedding_dim": 8, "hidden": 16}
    save(folder / "lstm", LSTM(**lstm), "text", lstm)
    return folder


def save(folder: Path, model: torch.nn.Module, family: str, config: dict[str, Any], **more: Any) -> None:
    contents = {"family": family, "arch": type(model).__name__, "config": config, **more}
    zoo.save(folder, model, contents, card={}, metrics={})


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """What is said to a wrong use: one line on stderr, status 2."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as picture:
        return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)


def test_images_go_to_a_grid_that_holds_the_samples(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "grid.png"
    result = run("sample", models / "gan", "--n", 5, "--seed", 3, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == "" and result.stderr == f"wrote {out}\n"
    samples = load(models / "gan").sample(n=5, seed=3)
    expected = images.grid(samples, scale=images.default_scale(samples))
    assert torch.equal(pixels(out), torch.frombuffer(bytearray(expected.tobytes()), dtype=torch.uint8))
    assert [file.name for file in out.parent.iterdir()] == ["grid.png"]


def test_default_place_is_out_and_the_name(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("sample", models / "gan", "--n", 2).exit_code == 0
    assert (tmp_path / "out" / "gan.png").is_file()


def test_diffusion_options_and_animation(models: Path, tmp_path: Path) -> None:
    out, gif = tmp_path / "d.png", tmp_path / "d.gif"
    result = run("sample", models / "unet", "-n", 4, "--steps", 3, "--solver", "euler", "--guidance", 2,
                 "--label", "7,0-1", "-o", out, "--gif", gif)  # fmt: skip
    assert result.exit_code == 0, result.output
    samples = load(models / "unet").sample(n=4, steps=3, solver="euler", guidance=2.0, label=[7, 0, 1, 7])
    expected = images.grid(samples, scale=images.default_scale(samples))
    assert torch.equal(pixels(out), torch.frombuffer(bytearray(expected.tobytes()), dtype=torch.uint8))
    with Image.open(gif) as animation:
        assert animation.size == expected.size
        assert 2 <= animation.n_frames <= 4  # a preview per step and the result; equal neighbours are merged


def test_a_sample_is_that_of_its_seed(models: Path, tmp_path: Path) -> None:
    run("sample", models / "unet", "-n", 4, "--seed", 5, "-o", tmp_path / "many.png")
    run("sample", models / "unet", "-n", 1, "--seed", 8, "-o", tmp_path / "one.png")
    with Image.open(tmp_path / "many.png") as many, Image.open(tmp_path / "one.png") as one:
        edge = one.width - 4
        corner = many.width - 2 - edge
        fourth = many.crop((corner, corner, corner + edge, corner + edge))
        assert fourth.tobytes() == one.crop((2, 2, 2 + edge, 2 + edge)).tobytes()


def test_text_goes_to_stdout_or_to_a_file(models: Path, tmp_path: Path) -> None:
    texts = load(models / "lstm").sample(n=2, prompt="so", length=9, temperature=0.5, top_k=3, seed=4)
    expected = "---\n".join(f"so{text}\n" for text in texts)
    options = ("--n", 2, "--prompt", "so", "--length", 9, "--temperature", 0.5, "--top-k", 3, "--seed", 4)
    assert run("sample", models / "lstm", *options).stdout == expected
    out = tmp_path / "text.txt"
    assert run("sample", models / "lstm", *options, "--out", out).stdout == ""
    assert out.read_text() == expected


def test_text_stops_at_any_of_the_stops(models: Path) -> None:
    whole = run("sample", models / "lstm", "--length", 40).stdout.rstrip("\n")
    stop = whole[10:12]
    cut = run("sample", models / "lstm", "--length", 40, "--stop", stop, "--stop", "zzzzz").stdout
    assert cut == whole[: whole.index(stop)] + "\n"


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("gan", ["--n", 0], "--n 0, expected at least 1"),
        ("gan", ["--steps", 3], "--steps with a gan model, expected --label, --truncation"),
        ("gan", ["--prompt", "x"], "--prompt with a gan model"),
        ("gan", ["--label", 3], "label"),
        ("gan", ["--out", "x.txt"], "--out: 'x.txt' ends in '.txt', expected one of .png"),
        ("gan", ["--truncation", "nan"], "truncation nan, expected finite"),
        ("unet", ["--steps", 0], "steps 0, expected at least 1"),
        ("unet", ["--solver", "magic"], "solver 'magic', expected one of"),
        ("unet", ["--guidance", "inf"], "guidance inf, expected a finite number"),
        ("unet", ["--label", 10], "label 10, expected 0 to 9"),
        ("unet", ["--label", "9-7"], "has no class in it"),
        ("unet", ["--gif", "x.png"], "--gif: 'x.png' ends in '.png', expected one of .gif"),
        ("lstm", ["--length", 0], "length 0, expected at least 1"),
        ("lstm", ["--prompt", "Ä"], "prompt with 'Ä'"),
        ("lstm", ["--top-p", 2], "top_p 2"),
        ("nothing", [], "is neither a zoo name nor a folder"),
    ],
)
def test_mistakes_get_one_line_and_write_nothing(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    options: list[Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused("sample", models / model, *options)
    assert list(tmp_path.iterdir()) == []


def test_a_classifier_is_not_sampled() -> None:
    assert "digits-classifier is a classifier" in refused("sample", "digits-classifier")


def test_a_folder_as_file_and_a_file_as_folder(models: Path, tmp_path: Path) -> None:
    assert "is a folder, expected a file" in refused("sample", models / "gan", "--out", tmp_path)
    (tmp_path / "file").write_text("")
    assert "file" in refused("sample", models / "gan", "--out", tmp_path / "file" / "grid.png")


def test_damaged_checkpoint_is_one_line(models: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (models / "gan").iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[:-7])
    assert "not JSON" in refused("sample", broken)
    (broken / "config.json").write_bytes((models / "gan" / "config.json").read_bytes())
    assert "truncated, damaged or not safetensors" in refused("sample", broken)


def test_traceback_is_there_when_asked_for(models: Path) -> None:
    assert "Traceback" in run("--traceback", "sample", models / "nothing").stderr


def test_labels() -> None:
    assert labels("3", 2) == [3, 3]
    assert labels("0-2, 7", 6) == [0, 1, 2, 7, 0, 1]
    assert labels("none", 4) is None
    for text in ("", "a", "-1", "1-", "1,,2"):
        with pytest.raises(ValueError, match="expected numbers"):
            labels(text, 1)


def test_models_lists_the_zoo_with_its_numbers() -> None:
    listed = run("models").stdout
    assert all(name in listed for name in zoo.names())
    assert "99." in listed, "the classifier's accuracy is in its card"


def test_train_lists_recipes_and_refuses_what_is_not_there(tmp_path: Path) -> None:
    listed = run("train").stdout
    assert "digits-diffusion" in listed and "text-lstm" in listed
    assert "recipe 'magic', expected one of" in refused("train", "magic")
    assert "no --data, expected an npz file" in refused("train", "digits-gan")
    missing = refused("train", "digits-gan", "--data", tmp_path / "no.npz", "--out", tmp_path / "run")
    assert "does not exist" in missing
    assert list(tmp_path.iterdir()) == []


def test_version_and_help() -> None:
    assert re.fullmatch(r"aigc-engine \d+\.\d+\.\d+\n", run("--version").stdout)
    for name in ("demo", "models", "sample", "train", "evaluate", "bench", "info"):
        assert name in run("--help").stdout
        assert run(name, "--help").exit_code == 0


def test_info_names_every_backend() -> None:
    shown = run("info").stdout
    assert "linear_update" in shown and "native" in shown and "reference" in shown


INTERRUPTIBLE = """
from aigc_engine.cli import console, main
inner = console.progress
def progress(title):
    print("sampling", flush=True)
    return inner(title)
console.progress = progress
main()
"""


def test_interrupt_ends_with_130_and_leaves_nothing(models: Path, tmp_path: Path) -> None:
    wanted = ["sample", models / "unet", "-n", 2000, "--steps", 100]
    files = ["-o", tmp_path / "never.png", "--gif", tmp_path / "never.gif"]
    command = [sys.executable, "-c", INTERRUPTIBLE, *map(str, wanted + files)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "sampling\n"
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert said == "interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_overview_draws_all_strips_and_cuts_long_texts() -> None:
    x = torch.linspace(-1, 1, 20 * 36).reshape(20, 1, 6, 6)
    columns = [[Strip("one", "note", x)], [Strip("two", "", x[:10]), Strip("three", "", x[:3])]]
    short = overview("title", "subtitle", columns, [Passage("text", "note", "In the ", "end. " * 3)])
    long = overview("title", "subtitle", columns, [Passage("text", "note", "In the ", "end. " * 3000)])
    assert short.size == long.size
    assert len(set(short.convert("L").tobytes())) > 20
    font_width = 7.0

    class Font:
        def getlength(self, text: str) -> float:
            return font_width * len(text)

    lines = wrap("aaa bb c\nddd " + "e" * 30, Font(), 7 * 6)  # type: ignore[arg-type]
    assert lines == ["aaa bb", "c", "ddd", "e" * 30]
