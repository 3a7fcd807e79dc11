"""Checkpoints: what is saved comes back, and what is damaged, foreign or dangerous is refused by name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aigc_engine import models, zoo


class Tied(nn.Module):
    """Shared weights, a buffer and an integer, as real models have them."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(x)))


@pytest.fixture(autouse=True)
def architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.ARCHITECTURES, "Tied", __name__)


def write(folder: Path, **changes: Any) -> Tied:
    torch.manual_seed(0)
    model = Tied()
    model.norm.running_mean.normal_()
    config = {"family": "test", "arch": "Tied", "config": {"width": 4}, **changes}
    zoo.save(folder, model, config, card={"Data": "none"}, metrics={"accuracy": "12.3%"})
    return model


def test_round_trip(tmp_path: Path) -> None:
    model = write(tmp_path / "tied").eval()
    loaded = zoo.load(tmp_path / "tied")
    assert loaded.name == "tied" and loaded.family == "test" and loaded.config["config"] == {"width": 4}
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    x = torch.arange(7)
    assert torch.equal(loaded.model(x), model(x))
    assert loaded.model.head.weight is loaded.model.embed.weight
    assert "head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    again = zoo.load_model(tmp_path / "tied" / "model.safetensors")
    assert torch.equal(again(x), model(x))


def test_half_precision_on_disk_is_float32_in_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tied()
    config = {"family": "test", "arch": "Tied", "config": {}}
    zoo.save(tmp_path, model, config, storage=torch.float16, card={}, metrics={})
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["embed.weight"].dtype == torch.float16
    assert stored["norm.num_batches_tracked"].dtype == torch.int64
    weight = zoo.load_model(tmp_path).embed.weight
    assert weight.dtype == torch.float32 and torch.equal(weight, model.embed.weight.half().float())


def test_card_says_what_was_measured(tmp_path: Path) -> None:
    write(tmp_path / "tied")
    card = (tmp_path / "tied" / "README.md").read_text()
    assert card.startswith("# tied\n") and "**Data**: none" in card and "| accuracy | 12.3% |" in card


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path) -> None:
    write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="stop"), zoo.replacing(tmp_path / "config.json") as temporary:
        temporary.write_text("half")
        raise ValueError("stop")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("length", [0, 4, 60, -1])
def test_truncated_weights_are_refused(tmp_path: Path, length: int) -> None:
    write(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"load: .*model\.safetensors.* truncated"):
        zoo.load(tmp_path)


def test_a_pickle_is_never_read_whatever_it_is_called(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (exec, ("raise SystemExit('the pickle ran')",))

    for name in ("model.pt", "model.pth", "model.ckpt", "pytorch_model.bin", "model.PKL"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ValueError, match="name_or_path .* is a pickle"):
            zoo.load(tmp_path / name)
    with pytest.raises(ValueError, match="is a pickle, which is never read"):
        write_config_only(tmp_path)
        zoo.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="not safetensors"):
        zoo.load(tmp_path)


def write_config_only(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"family": "test", "arch": "Tied", "config": {}}))


def test_wrong_keys_and_shapes_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "extra": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"wrong keys \(missing \[\], unknown \['extra'\]\)"):
        zoo.load(tmp_path)
    save_file({k: v for k, v in tensors.items() if k != "norm.bias"}, path)
    with pytest.raises(ValueError, match=r"missing \['norm.bias'\]"):
        zoo.load(tmp_path)
    save_file({**tensors, "norm.bias": torch.zeros(5)}, path)
    with pytest.raises(ValueError, match=r"weight norm.bias \(5,\), expected \(4,\)"):
        zoo.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected family, arch and config"),
        ('{"family": "test", "arch": "Tied"}', "expected family, arch and config"),
        ('{"family": "test", "arch": "os", "config": {}}', "arch 'os'"),
        ('{"family": "test", "arch": "Tied", "config": {"height": 3}}', "config does not fit Tied"),
    ],
)
def test_bad_configs_are_refused(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        zoo.load(tmp_path)


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'no-such-model' is neither .* expected one of"):
        zoo.load("no-such-model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        zoo.load(tmp_path / "empty")


@pytest.mark.parametrize("name", zoo.names())
def test_bundled_checkpoints_load_and_have_a_card(name: str) -> None:
    checkpoint = zoo.load(name)
    assert checkpoint.name == name
    assert all(torch.isfinite(p).all() for p in checkpoint.model.parameters())
    card = (checkpoint.path / "README.md").read_text()
    for heading in ("Data", "Licence", "Recipe", "Seed", "Date", "| measured |"):
        assert heading in card, f"{name}: the card lacks {heading}"


def test_the_zoo_is_small() -> None:
    folder = Path(zoo.__file__).parent
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= 16 * 2**20
