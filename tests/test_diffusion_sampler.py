"""`DiffusionSampler` on a small untrained UNet, and on the bundled one."""

from __future__ import annotations

import threading

import pytest
import torch

from aigc_engine import UnsupportedError, capability, zoo
from aigc_engine.diffusion import Cancelled, DiffusionSampler, Spacing
from aigc_engine.models.unet import UNet
from aigc_engine.models.vae import VAE

CONFIG = {
    "family": "diffusion",
    "arch": "UNet",
    "config": {
        "image_size": 8,
        "widths": [8, 8],
        "depths": [1, 1],
        "heads": 2,
        "embedding": 16,
        "num_classes": 3,
    },
    "schedule": {"name": "cosine", "timesteps": 200},
    "prediction": "v",
    "sampling": {"solver": "ddim", "steps": 6, "guidance": 2.0, "spacing": "trailing"},
}


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(**CONFIG["config"])
        for parameter in net.parameters():  # its last convolutions start at zero
            torch.nn.init.normal_(parameter, std=0.2)
    return net.requires_grad_(False)


@pytest.fixture(scope="module")
def sampler(model):
    return DiffusionSampler(model, schedule="cosine", prediction="v", **CONFIG["sampling"])


def test_n_images_equal_single_calls(sampler):
    labels = [0, 2, 1, 1, 0]
    batch = sampler.sample(5, seed=7, label=labels)
    assert batch.shape == (5, 1, 8, 8) and batch.dtype == torch.float32
    assert batch.min() >= -1 and batch.max() <= 1 and batch.unique().numel() > 50
    for i, label in enumerate(labels):
        assert torch.equal(batch[i : i + 1], sampler.sample(1, seed=7 + i, label=label))
    assert torch.equal(sampler.sample(seed=[9, 8], label=[1, 2]), batch[[2, 1]])


def test_mixed_options_equal_single_calls(sampler):
    options = {
        "steps": [3, 8, 5],
        "solver": ["dpmpp_2m", "euler_ancestral", "heun"],
        "guidance": [1.0, 3.0, 0.5],
    }
    batch = sampler.sample(3, seed=1, label=2, **options)
    for i in range(3):
        alone = {name: values[i] for name, values in options.items()}
        assert torch.equal(batch[i : i + 1], sampler.sample(seed=1 + i, label=2, **alone))


def test_counts(sampler):
    assert len(sampler.sample()) == 1
    assert len(sampler.sample(seed=[1, 2, 3])) == 3
    assert len(sampler.sample(label=[1, 2])) == 2
    assert len(sampler.sample(label=torch.tensor([1, 2, 0]))) == 3
    assert torch.equal(sampler.sample(2, label=1), sampler.sample(label=[1, 1]))


def test_heun_takes_the_nodes_of_its_paper(sampler):
    karras = Spacing(sigmas="karras", sigma_max=80.0)
    assert torch.equal(
        sampler.sample(seed=4, solver="heun"), sampler.sample(seed=4, solver="heun", spacing=karras)
    )
    mixed = sampler.sample(2, seed=4, solver=["heun", "ddim"])
    assert torch.equal(mixed[:1], sampler.sample(seed=4, solver="heun"))
    assert torch.equal(mixed[1:], sampler.sample(seed=5))


def test_label_and_guidance_matter(sampler):
    plain = sampler.sample(seed=3)
    assert torch.equal(sampler.sample(seed=3, guidance=5.0), plain)  # nothing to guide to
    one, two = sampler.sample(seed=3, label=1), sampler.sample(seed=3, label=2)
    assert not torch.equal(one, two) and not torch.equal(one, plain)
    assert not torch.equal(sampler.sample(seed=3, label=1, guidance=1.0), one)
    # g = 0 follows the unconditional output alone
    assert torch.allclose(sampler.sample(seed=3, label=1, guidance=0.0), plain, atol=1e-5)


def test_image_to_image_progress_and_cancel(sampler):
    start = sampler.sample(2, seed=5, label=1)
    steps = []
    again = sampler.sample(
        2, seed=6, label=1, start=start, strength=0.34, callback=lambda p: steps.append(p.preview().shape)
    )
    assert steps == [(2, 1, 8, 8)] * 2 and again.shape == start.shape
    with pytest.raises(Cancelled):
        sampler.sample(callback=lambda progress: False)


def test_threads_share_a_sampler(sampler):
    serial = [sampler.sample(2, seed=i, label=i % 3) for i in range(4)]
    found = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: sampler.sample(2, seed=i, label=i % 3)}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], serial[i]) for i in range(4))


def test_from_a_checkpoint(model, sampler, tmp_path):
    zoo.save(tmp_path / "small", model, CONFIG, card={}, metrics={})
    loaded = DiffusionSampler.from_checkpoint(zoo.load(tmp_path / "small"))
    assert loaded.schedule.T == 200 and loaded.solver == "ddim" and loaded.guidance == 2.0
    expected = DiffusionSampler(model, schedule=loaded.schedule, prediction="v", **CONFIG["sampling"])
    assert torch.equal(loaded.sample(2, label=[0, 1]), expected.sample(2, label=[0, 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": {}}, "no usable schedule, prediction and sampling"),
        ({"schedule": {"name": "quadratic", "timesteps": 9}}, "schedule 'quadratic', expected one of"),
        ({"prediction": "epsilon"}, "prediction 'epsilon', expected one of"),
        ({"sampling": {"solver": "dpm"}}, "solver 'dpm', expected one of"),
        ({"sampling": {"sampler": "ddim"}}, "no usable schedule, prediction and sampling"),
        ({"sampling": {"steps": 0}}, "steps 0, expected at least 1"),
    ],
)
def test_checkpoints_that_do_not_fit(model, tmp_path, change, message):
    zoo.save(tmp_path / "odd", model, {**CONFIG, **change}, card={}, metrics={})
    with pytest.raises(ValueError, match=message):
        DiffusionSampler.from_checkpoint(zoo.load(tmp_path / "odd"))


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"n": 0}, ValueError, "n 0, expected at least 1"),
        ({"n": 1.5}, TypeError, "n 1.5, expected an int"),
        ({"n": 3, "seed": [1, 2]}, ValueError, "seed has 2 entries, expected n = 3"),
        ({"label": 3}, ValueError, "label 3, expected 0 to 2, or None for none"),
        ({"label": -1}, ValueError, "label -1, expected 0 to 2"),
        ({"label": "one"}, TypeError, "label 'one', expected an int"),
        ({"n": 2, "label": [1, 2, 0]}, ValueError, "label has 3 entries, expected n = 2 or a single value"),
        ({"steps": 0}, ValueError, "steps 0, expected at least 1"),
        ({"solver": "dpm"}, ValueError, "solver 'dpm', expected one of"),
        ({"label": 1, "guidance": float("nan")}, ValueError, "guidance nan, expected a finite number"),
        ({"start": torch.zeros(1, 1, 9, 9)}, ValueError, r"start \(1, 1, 9, 9\), expected \(1, 1, 8, 8\)"),
    ],
)
def test_bad_input(sampler, given, kind, message):
    with pytest.raises(kind, match=f"^sample: {message}"):
        sampler.sample(**given)


def test_only_a_unet():
    with pytest.raises(TypeError, match="model VAE, expected a UNet"):
        DiffusionSampler(VAE())


@pytest.mark.skipif("digits-diffusion" not in zoo.names(), reason="digits-diffusion isn't bundled yet")
def test_bundled_digits():
    sampler = DiffusionSampler.from_checkpoint(zoo.load("digits-diffusion"))
    batch = sampler.sample(3, seed=2, label=[7, 0, 4], steps=3)
    assert batch.shape == (3, 1, 28, 28)
    for i, label in enumerate((7, 0, 4)):
        assert torch.equal(batch[i : i + 1], sampler.sample(seed=2 + i, label=label, steps=3))


def test_a_checkpoint_s_network_takes_options_of_accelerate(tmp_path, monkeypatch):
    checkpoint = zoo.load("digits-diffusion")
    options = {"n": 2, "seed": 4, "label": [1, 2], "steps": 3}
    wanted = DiffusionSampler.from_checkpoint(checkpoint).sample(**options)
    low = DiffusionSampler.from_checkpoint(checkpoint, dtype=torch.bfloat16)
    assert low.explain() == "plans, made at the first call"
    got = low.sample(**options)
    assert got.dtype == torch.float32 and 0 < (got - wanted).abs().mean() < 0.05
    assert "bfloat16" in low.explain() and next(checkpoint.model.parameters()).dtype == torch.float32
    assert torch.equal(low.sample(1, seed=5, label=2, steps=3), got[1:])

    monkeypatch.setattr(torch.export, "export", None)  # the graph beside the weights serves these
    coarse = DiffusionSampler.from_checkpoint(checkpoint, quantize="int8")
    got = coarse.sample(**options)
    assert 0 < (got - wanted).abs().mean() < 0.05 and "int8" in coarse.explain()
    with pytest.raises(UnsupportedError, match="left to torch: .*float64"):  # times are embedded in float64
        DiffusionSampler.from_checkpoint(checkpoint, strict=True).sample(**options)
    moved = DiffusionSampler.from_checkpoint(zoo.load("digits-diffusion"), offload=tmp_path)
    assert torch.equal(moved.sample(**options), wanted)


def test_a_checkpoint_s_bad_options(monkeypatch):
    checkpoint = zoo.load("digits-diffusion")
    for given, kind, message in (
        ({"dtype": torch.float16}, TypeError, "accelerate: dtype torch.float16, expected one of"),
        ({"precision": "low"}, ValueError, "accelerate: precision 'low', expected one of"),
        ({"quantize": "int4"}, ValueError, "accelerate: quantize 'int4', expected one of"),
        ({"offload": "/nowhere"}, ValueError, "accelerate: offload '/nowhere', expected a folder"),
        ({"saved": "graph"}, TypeError, "unexpected keyword argument 'saved'"),
    ):
        with pytest.raises(kind, match=message):
            DiffusionSampler.from_checkpoint(checkpoint, **given)
    monkeypatch.setattr(capability, "native_missing", lambda: "it isn't built")
    assert "op by op" in DiffusionSampler.from_checkpoint(checkpoint).explain()
    with pytest.raises(UnsupportedError, match="accelerate: it isn't built"):
        DiffusionSampler.from_checkpoint(checkpoint, quantize="int8")
