"""Graphs in files: what is saved comes back without a capture, and a file can do nothing but compute."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from aigc_engine import accelerate, zoo
from aigc_engine.diffusion import DiffusionSampler
from aigc_engine.graph import saved
from aigc_engine.planned import GRAPH, keep_graph
from aigc_engine.vae import VaeSampler

pytestmark = pytest.mark.filterwarnings("ignore:accelerate. .* run through torch:RuntimeWarning")


class Block(nn.Module):
    """Enough for a shape that follows from sizes."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.second = nn.Linear(channels, 3)

    def forward(self, x: Tensor, t: Tensor | float = 0.5) -> dict[str, Tensor]:
        h = F.silu(self.first(x)).flatten(2).transpose(1, 2)
        return {"sample": self.second(h) * t}


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["aigc_engine"])


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The file with a change to its header."""
    found = header(path)
    change(found)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    other = path.with_name("other.safetensors")
    save_file(tensors, other, {"aigc_engine": json.dumps(found)})
    return other


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    fast = accelerate(Block().eval())
    fast(torch.randn(2, 3, 8, 8), 3)
    fast.save(tmp_path / "block.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["block.safetensors"]
    return tmp_path / "block.safetensors"


def test_saved_graphs_need_no_capture(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Block().eval()
    monkeypatch.setattr(torch.export, "export", None)
    fast = accelerate(model, saved=path)
    with torch.no_grad():
        for x in (torch.randn(2, 3, 8, 8), torch.randn(1, 3, 12, 9)):
            torch.testing.assert_close(fast(x, 3), model(x, 3), rtol=1e-4, atol=1e-5)


def test_other_modules_and_versions_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="save: nothing was called yet"):
        accelerate(Block().eval()).save(path)
    with pytest.raises(ValueError, match=r"first.weight is torch.float32 \(8, 3, 3, 3\), expected .*\(16, 3"):
        accelerate(Block(8).eval(), saved=path)
    with pytest.raises(ValueError, match="saved module 'Block', expected 'Linear'"):
        accelerate(nn.Linear(3, 3).eval(), saved=path)
    with pytest.raises(ValueError, match="saved dtype None, expected torch.bfloat16"):
        accelerate(Block().eval(), dtype=torch.bfloat16, saved=path)
    monkeypatch.setattr(saved, "TORCH", "9.9")
    with pytest.raises(ValueError, match="saved torch .* expected '9.9'; save it again"):
        accelerate(Block().eval(), saved=path)


def graph_of(found: dict[str, Any]) -> dict[str, Any]:
    return found["graphs"][0]


def call_of(found: dict[str, Any]) -> list[Any]:
    return next(node for node in graph_of(found)["nodes"] if node[0] == "call_function")


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "ops.checks.FLOATS",
        "ops.Tensor",
        "operator.call",
        "operator.attrgetter",
        "math.pi",
        "torch.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.add_.Tensor",
        "torch.ops.aten.add.out",
        "torch.ops.other.add.Tensor",
    ],
)
def test_a_file_names_nothing_but_computation(path: Path, name: str) -> None:
    def change(found: dict[str, Any]) -> None:
        call_of(found)[2] = name

    with pytest.raises(ValueError, match=f"saved calls '{name}', expected an op of ours or of aten's"):
        accelerate(Block().eval(), saved=rewritten(path, change))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__",
        "[x for x in (1,)]",
        "(lambda: 1)()",
        "L['x'].__init__()",
        "exit()",
        "max(1, key=1)",
        "L['x'].tofile('name')",
    ],
)
def test_sizes_and_guards_are_arithmetic(path: Path, text: str) -> None:
    def guard(found: dict[str, Any]) -> None:
        graph_of(found)["guards"].append(text)

    def size(found: dict[str, Any]) -> None:
        next(value for *_, value in graph_of(found)["nodes"] if value and value[1])[1][0] = text

    for change in (guard, size):
        with pytest.raises(ValueError, match="expected arithmetic over sizes"):
            accelerate(Block().eval(), saved=rewritten(path, change))


def test_damaged_files_are_refused(path: Path) -> None:
    def keyless(found: dict[str, Any]) -> None:
        del graph_of(found)["nodes"]

    def unreadable(found: dict[str, Any]) -> None:
        graph_of(found)["guards"].append("1 +")

    for change in (keyless, unreadable):
        with pytest.raises(ValueError, match="saved .*other.safetensors is damaged"):
            accelerate(Block().eval(), saved=rewritten(path, change))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="saved .*block.safetensors is damaged"):
        accelerate(Block().eval(), saved=path)
    save_file({}, path)
    with pytest.raises(ValueError, match=r"expected a file that save\(\) wrote"):
        accelerate(Block().eval(), saved=path)


@pytest.mark.parametrize("name", ["digits-diffusion", "digits-vae"])
def test_the_zoo_s_graphs_are_those_of_its_models(name: str, tmp_path: Path) -> None:
    checkpoint = zoo.load(name)
    if header(checkpoint.path / GRAPH)["torch"] != saved.TORCH:
        pytest.skip("kept for another release of torch")
    path = keep_graph(dataclasses.replace(checkpoint, path=tmp_path))
    assert path is not None
    assert header(checkpoint.path / GRAPH) == header(path), "run `make graphs`"
    assert keep_graph(zoo.load("digits-gan")) is None


def test_samplers_use_the_graph_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = zoo.load("digits-diffusion")
    sampler = DiffusionSampler.from_checkpoint(checkpoint)
    assert sampler.explain() == "plans, made at the first call"
    monkeypatch.setattr(torch.export, "export", None)
    images = sampler.sample(2, seed=4, label=[1, 2], steps=3)
    assert "62 nodes in" in sampler.explain()
    plain = DiffusionSampler(checkpoint.model, schedule="cosine", prediction="v", spacing="trailing")
    assert plain.explain() == "calls of UNet run op by op: accelerate(model) makes plans"
    wanted = plain.sample(2, seed=4, label=[1, 2], steps=3, solver="ddim", guidance=1.5)
    torch.testing.assert_close(images, wanted, rtol=0, atol=1e-4)
    with torch.autocast("cpu"):
        assert sampler.explain() == "calls of UNet run op by op: inside torch.autocast"
    monkeypatch.setattr(saved, "TORCH", "9.9")
    told = DiffusionSampler.from_checkpoint(checkpoint).explain()
    assert told.startswith("calls of UNet run op by op: accelerate: saved torch")


def test_the_vae_decodes_as_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = zoo.load("digits-vae")
    monkeypatch.setattr(torch.export, "export", None)
    sampler = VaeSampler.from_checkpoint(checkpoint)
    images = sampler.sample(3, seed=7)
    assert sampler.explain().startswith("9 nodes in 1 segments, 0 left to torch")
    for row in range(3):
        assert torch.equal(sampler.sample(1, seed=7 + row)[0], images[row])
    plain = VaeSampler(checkpoint.model, truncation=sampler.truncation)
    assert plain.explain() == f"calls of Decoder run op by op: no {GRAPH} was loaded for it"
    torch.testing.assert_close(images, plain.sample(3, seed=7), rtol=0, atol=1e-5)
    sampler.model.out.bias.add_(100.0)
    assert (sampler.sample(3, seed=7) > 0.9).all()  # white
