"""The VAE sampler. Weights are random: no checkpoint is needed."""

from __future__ import annotations

import threading

import pytest
import torch

from aigc_engine import zoo
from aigc_engine.models.vae import VAE
from aigc_engine.ops import philox_normal
from aigc_engine.vae import VaeSampler


@pytest.fixture(scope="module")
def sampler():
    torch.manual_seed(0)
    model = VAE()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(2.0)
    return VaeSampler(model.requires_grad_(False))


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def pictures(n: int) -> torch.Tensor:
    return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(n)) * 2 - 1


def test_a_batch_equals_single_calls_bitwise(sampler, threads):
    rows = [*range(8), 16, 32]
    singles = torch.cat([sampler.sample(seed=40 + row) for row in rows])
    assert singles.std(0).mean() > 1e-3
    for n in (1, 2, 3, 5, 8, 33):
        got = sampler.sample(n, seed=40)
        assert got.dtype == torch.float32 and got.shape == (n, 1, 28, 28)
        alone = [row for row in rows if row < n]
        assert torch.equal(got[alone], singles[: len(alone)]), f"n = {n}"
    for batch_size in (7, 32, 100):
        assert torch.equal(sampler.sample(33, seed=40, batch_size=batch_size), got)


def test_reconstructions_do_not_depend_on_the_batch(sampler, threads):
    images = pictures(33)
    whole = sampler.reconstruct(images)
    assert whole.shape == images.shape
    for n in (1, 2, 3, 5, 8):
        assert torch.equal(sampler.reconstruct(images[:n]), whole[:n]), f"n = {n}"
    assert torch.equal(sampler.reconstruct(images, batch_size=7), whole)


def test_samples_decode_the_normals_of_their_seeds(sampler):
    z = philox_normal(torch.tensor([7, 3]), (16,))
    with torch.inference_mode():
        assert torch.equal(sampler.sample(seed=[7, 3]), sampler.model.decode(z))
        assert torch.equal(sampler.sample(seed=[7, 3], truncation=0.5), sampler.model.decode(0.5 * z))
        assert torch.equal(sampler.reconstruct(pictures(3)), sampler.model(pictures(3)))


def test_labels_choose_the_gaussian_that_the_noise_is_shaped_by(sampler):
    model = VAE()
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(500, 16, generator=generator) + torch.arange(500)[:, None] % 10
    model.fit_classes(means, torch.arange(500) % 10)
    shaped = VaeSampler(model.requires_grad_(False))
    noise = philox_normal(torch.tensor([5, 5]), (16,))
    z = model.class_mean[[3, 8]] + 0.5 * (model.class_scale[[3, 8]] @ noise[:, :, None])[:, :, 0]
    got = shaped.sample(seed=[5, 5], label=[3, 8], truncation=0.5)
    torch.testing.assert_close(got, model.decode(z))
    assert torch.equal(shaped.sample(seed=13), shaped.sample(seed=13, label=3))
    whole = shaped.sample(33, seed=4)
    for n in (1, 2, 3, 5, 8):
        assert torch.equal(shaped.sample(n, seed=4), whole[:n])


def test_classes_are_fitted_to_their_means_and_covariances():
    model = VAE()
    generator = torch.Generator().manual_seed(0)
    scale = torch.randn(16, 16, generator=generator)
    rows = torch.randn(20_000, 16, generator=generator) @ scale.T + 3.0
    model.fit_classes(rows, torch.arange(20_000) % 10)
    torch.testing.assert_close(model.class_mean[4], rows[4::10].mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        model.class_scale[4] @ model.class_scale[4].T, torch.cov(rows[4::10].T), rtol=1e-3, atol=1e-3
    )


def test_interpolation_between_seeds_and_images_ends_where_it_should(sampler):
    a, b = pictures(2)
    path = sampler.interpolate(a, b, 5)
    assert path.shape == (5, 1, 28, 28)
    assert torch.equal(path[[0, -1]], sampler.reconstruct(pictures(2)))
    assert torch.equal(sampler.interpolate(4, 9, 5)[[0, -1]], sampler.sample(seed=[4, 9]))
    mixed = sampler.interpolate(a, 9, 5)
    assert torch.equal(mixed[0], path[0]) and torch.equal(mixed[-1], sampler.sample(seed=9)[0])


def test_threads_sharing_a_sampler_get_what_one_would(sampler):
    want = [sampler.sample(5, seed=100 * i) for i in range(8)]
    got: list[torch.Tensor | None] = [None] * 8
    start = threading.Barrier(8)

    def work(i):
        start.wait()
        got[i] = sampler.sample(5, seed=100 * i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 0}, ValueError, "n 0, expected at least 1"),
        ({"seed": 1.5}, TypeError, "seed 1.5, expected an int"),
        ({"n": 3, "seed": [1, 2]}, ValueError, "seed has 2 entries, expected n = 3"),
        ({"truncation": float("inf")}, ValueError, "truncation inf, expected finite and above 0"),
        ({"label": 10}, ValueError, "label 10, expected 0 to 9"),
        ({"label": [1, 2]}, ValueError, "label has 2 entries, expected 1"),
        ({"label": "3"}, TypeError, "label '3', expected an int"),
        ({"batch_size": -1}, ValueError, "batch_size -1, expected at least 1"),
    ],
)
def test_bad_arguments_are_named(sampler, arguments, error, message):
    with pytest.raises(error, match=f"VaeSampler.sample: {message}"):
        sampler.sample(**arguments)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 28, 28), ValueError, r"images \(2, 28, 28\), expected \(B >= 1, 1, 28, 28\)"),
        (torch.zeros(0, 1, 28, 28), ValueError, r"images \(0, 1, 28, 28\), expected"),
        (torch.zeros(2, 3, 28, 28), ValueError, r"images \(2, 3, 28, 28\), expected"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), TypeError, "images torch.uint8, expected a floating"),
        ([[0.0]], TypeError, "images list, expected a floating tensor"),
        (torch.full((2, 1, 28, 28), 255.0), ValueError, r"images from 255 to 255, expected \[-1, 1\]"),
        (torch.full((2, 1, 28, 28), float("nan")), ValueError, "images from nan to nan, expected"),
    ],
)
def test_bad_images_are_named(sampler, images, error, message):
    with pytest.raises(error, match=f"VaeSampler.reconstruct: {message}"):
        sampler.reconstruct(images)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 1, 1), ValueError, "n 1, expected at least 2"),
        ((0.5, 1), TypeError, "a 0.5, expected an int"),
        ((0, torch.zeros(1, 1, 28, 28)), ValueError, r"b \(1, 1, 28, 28\), expected \(1, 28, 28\)"),
        ((torch.zeros(1, 8, 8), 0), ValueError, r"a \(1, 1, 8, 8\), expected"),
    ],
)
def test_bad_interpolations_are_named(sampler, arguments, error, message):
    with pytest.raises(error, match=f"VaeSampler.interpolate: {message}"):
        sampler.interpolate(*arguments)


def test_another_kind_of_model_is_refused():
    with pytest.raises(TypeError, match="VaeSampler: model Linear, expected a VAE"):
        VaeSampler(torch.nn.Linear(2, 2))


def test_the_zoo_keeps_the_promise(threads):
    sampler = VaeSampler.from_checkpoint(zoo.load("digits-vae"))
    whole = sampler.sample(33, seed=1000)
    for row in (0, 1, 32):
        assert torch.equal(sampler.sample(seed=1000 + row)[0], whole[row])
    for n in (2, 3, 5, 8):
        assert torch.equal(sampler.sample(n, seed=1000), whole[:n])
