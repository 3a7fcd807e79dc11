"""Generators, their folded forms, and the GAN sampler. Weights are random: no checkpoint is needed."""

from __future__ import annotations

import threading

import pytest
import torch

from aigc_engine import zoo
from aigc_engine.gan import GanSampler, fold
from aigc_engine.models.gan import DCGANGenerator, Discriminator, MLPGenerator, minibatch_stddev
from aigc_engine.ops import philox_normal


def randomised(model, seed=0):
    """The model in eval mode, with weights, biases and running statistics that all matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("running_var", "norm0.weight", "norm1.weight")):
                tensor.uniform_(0.3, 2.0, generator=generator)
            elif tensor.is_floating_point():
                scale = 0.3 if tensor.ndim < 2 else tensor[0].numel() ** -0.5
                tensor.normal_(0.0, scale, generator=generator)
    return model.eval().requires_grad_(False)


MODELS = {
    "dcgan": lambda: DCGANGenerator(),
    "dcgan_wide": lambda: DCGANGenerator(
        latent_dim=33, num_classes=3, widths=(96, 48), channels=3, base_size=4
    ),
    "dcgan_classless": lambda: DCGANGenerator(num_classes=None, widths=(16, 17)),
    "mlp": lambda: MLPGenerator(),
    "mlp_mixture": lambda: MLPGenerator(components=10),
    "mlp_odd": lambda: MLPGenerator(latent_dim=5, widths=(33, 17), image_shape=(3, 5, 7)),
}


@pytest.fixture(params=MODELS)
def model(request):
    return randomised(MODELS[request.param]())


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def digits():
    return GanSampler(randomised(DCGANGenerator()))


def test_folding_keeps_the_function(model):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(9, model.latent_dim, generator=generator)
    label = None if model.num_classes is None else torch.arange(9) % model.num_classes
    with torch.inference_mode():
        want, got = model(z, label), fold(model)(z, label)
    assert want.std() > 0.05  # not a constant image
    assert want.abs().mean() < 0.95  # and not saturated
    assert got.shape == (9, *model.image_shape)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


def test_the_mixture_sees_which_coordinate_is_largest_and_nothing_else_of_the_first():
    model = randomised(MLPGenerator(components=10))
    z = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    z[:, :10] = 0.01 * z[:, :10]
    z[:, 4] = 1.0
    other = z.clone()
    other[:, :10] = 3.0 * z[:, :10] - 1.0
    with torch.inference_mode():
        for generate in (model, fold(model)):
            assert torch.equal(generate(z, None), generate(other, None))
            assert not torch.equal(generate(z, None), generate(z.roll(1, 1), None))


def test_fold_copies_the_weights(model):
    z = torch.randn(3, model.latent_dim, generator=torch.Generator().manual_seed(1))
    label = None if model.num_classes is None else torch.zeros(3, dtype=torch.int64)
    with torch.inference_mode():
        generate = fold(model)
        want = generate(z, label)
        for tensor in model.state_dict().values():
            tensor.zero_()
        assert torch.equal(generate(z, label), want)


def test_fold_names_what_it_cannot_fold():
    with pytest.raises(TypeError, match="fold: model Linear, expected a DCGANGenerator or an MLPGenerator"):
        fold(torch.nn.Linear(2, 2))


def test_a_batch_equals_single_calls_bitwise(model, threads):
    sampler = GanSampler(model)
    rows = [*range(8), 16, 32]
    singles = torch.cat([sampler.sample(seed=40 + row) for row in rows])
    for n in (1, 2, 3, 5, 8, 33):
        got = sampler.sample(n, seed=40)
        assert got.dtype == torch.float32 and got.shape == (n, *model.image_shape)
        assert got.is_contiguous()
        alone = [row for row in rows if row < n]
        assert torch.equal(got[alone], singles[: len(alone)]), f"n = {n}"
    for batch_size in (7, 32, 100):
        assert torch.equal(sampler.sample(33, seed=40, batch_size=batch_size), got)


def test_seeds_of_a_sequence_are_rows_in_its_order(digits):
    run = digits.sample(4, seed=6, label=1)
    assert torch.equal(digits.sample(seed=[9, 6, 8, 7, 6], label=1), run[[3, 0, 2, 1, 0]])
    assert not torch.equal(run[0], run[1])


def test_default_labels_cycle_with_the_seed(digits):
    want = digits.sample(12, seed=-3, label=[(i - 3) % 10 for i in range(12)])
    assert torch.equal(digits.sample(12, seed=-3), want)
    assert not torch.equal(digits.sample(seed=4, label=4), digits.sample(seed=4, label=5))


def test_truncation_scales_z(model):
    sampler = GanSampler(model)
    with torch.inference_mode():
        z = philox_normal(torch.tensor([5, 6]), (model.latent_dim,)) * 0.6
        label = None if model.num_classes is None else torch.tensor([5, 6]) % model.num_classes
        assert torch.equal(sampler.sample(2, seed=5, truncation=0.6), fold(model)(z, label))
    assert torch.equal(
        GanSampler(model, truncation=0.6).sample(2, seed=5), sampler.sample(2, seed=5, truncation=0.6)
    )
    assert not torch.equal(sampler.sample(2, seed=5), sampler.sample(2, seed=5, truncation=0.6))


def test_interpolation_ends_at_the_samples_of_its_seeds(model):
    sampler = GanSampler(model)
    label = None if model.num_classes is None else 1
    path = sampler.interpolate(3, 77, 7, label=label)
    assert path.shape == (7, *model.image_shape)
    assert torch.equal(path[0], sampler.sample(seed=3, label=label)[0])
    assert torch.equal(path[-1], sampler.sample(seed=77, label=label)[0])
    steps = (path[1:] - path[:-1]).flatten(1).norm(dim=1)
    assert steps.max() < 0.6 * (path[0] - path[-1]).norm()


def test_interpolation_defaults_to_the_class_of_its_first_seed(digits):
    assert torch.equal(digits.interpolate(13, 4, 3), digits.interpolate(13, 4, 3, label=3))


def test_threads_sharing_a_sampler_get_what_one_would(model):
    sampler = GanSampler(model)
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


def test_sampling_leaves_no_trace(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    state = torch.get_rng_state()
    images = GanSampler(model).sample(3)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.is_grad_enabled() and not images.requires_grad
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(images, GanSampler(model.eval()).sample(3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 0}, ValueError, "n 0, expected at least 1"),
        ({"n": 2.0}, TypeError, "n 2.0, expected an int"),
        ({"seed": 1.5}, TypeError, "seed 1.5, expected an int"),
        ({"n": 3, "seed": [1, 2]}, ValueError, "seed has 2 entries, expected n = 3"),
        ({"label": 10}, ValueError, "label 10, expected 0 to 9"),
        ({"label": -1}, ValueError, "label -1, expected 0 to 9"),
        ({"label": 2.0}, TypeError, "label 2.0, expected an int"),
        ({"label": "2"}, TypeError, "label '2', expected an int"),
        ({"n": 3, "label": [1, 2]}, ValueError, "label has 2 entries, expected 3"),
        ({"truncation": 0.0}, ValueError, "truncation 0.0, expected finite and above 0"),
        ({"truncation": float("nan")}, ValueError, "truncation nan, expected finite"),
        ({"truncation": "x"}, TypeError, "truncation 'x', expected a float"),
        ({"batch_size": 0}, ValueError, "batch_size 0, expected at least 1"),
    ],
)
def test_bad_arguments_are_named(digits, arguments, error, message):
    with pytest.raises(error, match=f"GanSampler.sample: {message}"):
        digits.sample(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 1, 1), ValueError, "n 1, expected at least 2"),
        ((0.5, 1), TypeError, "seed_a 0.5, expected an int"),
        ((0, None), TypeError, "seed_b None, expected an int"),
        ((0, 2**63), ValueError, "seed 0 to"),
    ],
)
def test_bad_interpolations_are_named(digits, arguments, error, message):
    with pytest.raises(error, match=f"GanSampler.interpolate: {message}"):
        digits.interpolate(*arguments)


def test_a_label_for_a_model_without_classes_is_refused():
    with pytest.raises(ValueError, match="label 3, expected None"):
        GanSampler(randomised(MLPGenerator())).sample(label=3)


def test_a_bad_default_truncation_is_refused_at_once():
    with pytest.raises(ValueError, match="GanSampler: truncation -1"):
        GanSampler(MLPGenerator(), truncation=-1)


def test_the_discriminator_sees_class_and_variety():
    network = randomised(Discriminator(10))
    x = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    zeros, ones = torch.zeros(8, dtype=torch.int64), torch.ones(8, dtype=torch.int64)
    assert network(x, zeros).shape == (8,)
    assert not torch.equal(network(x, zeros), network(x, ones))
    h = x.flatten(1)
    spread = minibatch_stddev(h)
    assert spread.shape == (8, 1)
    torch.testing.assert_close(spread[0, 0], h[:4].std(0, unbiased=False).mean())
    torch.testing.assert_close(spread[7, 0], h[4:].std(0, unbiased=False).mean())
    assert minibatch_stddev(h[:1].expand(4, -1)).max() < 1e-3


@pytest.mark.parametrize("name", ["digits-gan", "digits-mlp-gan"])
def test_the_zoo_keeps_the_promise_and_covers_the_digits(name, threads):
    sampler = GanSampler.from_checkpoint(zoo.load(name))
    whole = sampler.sample(64, seed=1000)
    for row in (0, 1, 31, 63):
        assert torch.equal(sampler.sample(seed=1000 + row)[0], whole[row])
    for n in (2, 3, 5, 8, 33):
        assert torch.equal(sampler.sample(n, seed=1000), whole[:n])
    classifier = zoo.load("digits-classifier").model
    with torch.inference_mode():
        shares = classifier(whole).argmax(1).bincount(minlength=10)
    assert shares.min() >= 1 and shares.max() <= 16
