"""`load`: a checkpoint's family decides its sampler, and what can't be sampled is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import aigc_engine
from aigc_engine import zoo
from aigc_engine.models.gan import MLPGenerator


def write_generator(folder: Path, family: str = "gan", **config: Any) -> MLPGenerator:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"latent_dim": 8, "widths": [16], "image_shape": [1, 6, 6]}
    model = MLPGenerator(**sizes)
    contents = {"family": family, "arch": "MLPGenerator", "config": sizes, **config}
    zoo.save(folder, model, contents, card={}, metrics={})
    return model


def test_the_zoo_loads_by_name_into_the_sampler_of_its_family() -> None:
    families = {
        "digits-diffusion": aigc_engine.DiffusionSampler,
        "digits-gan": aigc_engine.GanSampler,
        "digits-mlp-gan": aigc_engine.GanSampler,
        "digits-vae": aigc_engine.VaeSampler,
        "text-transformer": aigc_engine.TextSampler,
        "text-lstm": aigc_engine.TextSampler,
    }
    for name, sampler in families.items():
        assert type(aigc_engine.load(name)) is sampler, name
    assert set(families) | {"digits-classifier"} == set(zoo.names())


def test_a_folder_or_its_weights_load_as_well(tmp_path: Path) -> None:
    write_generator(tmp_path / "mine")
    by_folder = aigc_engine.load(tmp_path / "mine").sample(n=3, seed=5)
    by_file = aigc_engine.load(tmp_path / "mine" / "model.safetensors").sample(n=3, seed=5)
    assert by_folder.shape == (3, 1, 6, 6)
    assert torch.equal(by_folder, by_file)


def test_sampling_defaults_come_from_the_config(tmp_path: Path) -> None:
    write_generator(tmp_path / "plain")
    write_generator(tmp_path / "cut", sampling={"truncation": 0.5})
    plain, cut = (aigc_engine.load(tmp_path / name) for name in ("plain", "cut"))
    assert torch.equal(cut.sample(n=2), plain.sample(n=2, truncation=0.5))
    assert not torch.equal(cut.sample(n=2), plain.sample(n=2))


def test_a_family_without_sampler_is_refused(tmp_path: Path) -> None:
    write_generator(tmp_path / "odd", family="classifier")
    with pytest.raises(ValueError, match="load: odd is of family 'classifier', expected"):
        aigc_engine.load(tmp_path / "odd")


@pytest.mark.parametrize("name", ["digits-ddpm", "no/such/folder"])
def test_unknown_names_are_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"load: name_or_path .* expected one of \[.*digits"):
        aigc_engine.load(name)


def test_a_pickle_is_refused_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"never opened")
    with pytest.raises(ValueError, match=r"is a pickle, expected"):
        aigc_engine.load(tmp_path / "model.pt")


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    write_generator(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="truncated, damaged or not safetensors"):
        aigc_engine.load(tmp_path / "cut")


def test_a_config_for_another_network_is_refused(tmp_path: Path) -> None:
    write_generator(tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    config = json.loads(path.read_text())
    config["config"]["latent_dim"] = 9
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"weight layers\.0\.weight \(16, 8\), expected \(16, 9\)"):
        aigc_engine.load(tmp_path / "other")
