"""`accelerate` on the pipelines of diffusers, of tiny networks: the images that eager gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aigc_engine import accelerate
from tests import diffusers_toys as toys

diffusers = pytest.importorskip("diffusers", reason="diffusers isn't installed")
transformers = pytest.importorskip("transformers", reason="transformers isn't installed")
pytestmark = toys.MARKS

WORDS = ("a", "cat", "dog", "<|startoftext|>", "<|endoftext|>")


def result(pipe: Any, kind: str = "images", **options: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    options = {"output_type": "np", "num_inference_steps": 2, **options}
    return getattr(pipe(generator=torch.Generator().manual_seed(3), **options), kind)


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.shape == wanted.shape and abs(got - wanted).max() < 1e-4 * np.ptp(wanted)


def tokenizer() -> Any:
    vocabulary = {f"{word}</w>" if word.isalpha() else word: index for index, word in enumerate(WORDS)}
    letters = sorted(set("catdog"))
    more = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "do"]
    for word in more:
        vocabulary.setdefault(word, len(vocabulary))
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=8)


def text_encoder(make: Callable[..., nn.Module] = toys.clip_text) -> nn.Module:
    ends = {"bos_token_id": WORDS.index("<|startoftext|>"), "eos_token_id": WORDS.index("<|endoftext|>")}
    return make(num_hidden_layers=1, max_position_embeddings=8, pad_token_id=ends["eos_token_id"], **ends)


def image_scheduler() -> Any:
    return diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)


@pytest.mark.parametrize("kind", ["DDIMPipeline", "DDPMPipeline"])
def test_unconditional_pipelines(kind: str) -> None:
    scheduler = getattr(diffusers, kind.replace("Pipeline", "Scheduler"))()
    pipe = getattr(diffusers, kind)(toys.small_unet2d(), scheduler)
    wanted = result(pipe, batch_size=2)
    forward = pipe.unet.forward
    fast = accelerate(pipe)
    assert "unet: not called yet" in fast.explain()
    close(result(fast, batch_size=2), wanted)
    close(result(fast, batch_size=1), result(type(pipe)(copy_of(fast).unet, scheduler), batch_size=1))
    assert "unet: " in fast.explain() and "conv2d + channel_bias" in fast.explain()
    assert fast.scheduler is pipe.scheduler and pipe.unet.forward is not forward
    assert fast.restore() is pipe and pipe.unet.forward == forward
    assert (result(pipe, batch_size=2) == wanted).all()


def copy_of(fast: Any) -> Any:
    """The pipeline's networks as they were."""
    components = {}
    for name, component in fast.components.items():
        if isinstance(component, nn.Module):
            component = copy.copy(component)
            component.__dict__.pop("forward", None)
        components[name] = component
    return type(fast._pipe)(**components)


def test_latent_diffusion() -> None:
    codes = diffusers.VQModel(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        num_vq_embeddings=16,
    )
    pipe = diffusers.LDMPipeline(codes.eval(), toys.small_unet2d(), image_scheduler())
    wanted = result(pipe, batch_size=2)
    fast = accelerate(pipe)
    close(result(fast, batch_size=2), wanted)
    assert "vqvae.decoder: " in fast.explain() and "vqvae.encoder: not called yet" in fast.explain()


def stable_diffusion() -> Any:
    """The pipeline that the others take their components from."""
    torch.manual_seed(0)
    return diffusers.StableDiffusionPipeline(
        vae=toys.autoencoder(scaling_factor=1.0),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=toys.small_unet_condition(),
        scheduler=image_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def pipes() -> tuple[Any, Any]:
    """Stable diffusion as it is, and its equal with accelerated networks."""
    eager, fast = stable_diffusion(), accelerate(stable_diffusion())
    return eager, fast


PROMPT = {"prompt": ["a cat", "dog"], "negative_prompt": ["a", "a dog"]}


def test_text_to_image(pipes: tuple[Any, Any]) -> None:
    eager, fast = pipes
    seen: list[tuple[int, float]] = []

    def note(pipe: Any, step: int, t: Tensor, values: dict) -> dict:
        values["latents"] = values["latents"] * 0.9
        seen.append((step, float(values["latents"].sum())))
        return values

    options = {**PROMPT, "height": 16, "width": 16, "callback_on_step_end": note}
    close(result(fast, **options), result(eager, **options))
    assert [step for step, _ in seen] == [0, 1] * 2
    assert [total for _, total in seen[:2]] == pytest.approx([total for _, total in seen[2:]], rel=1e-3)
    told = fast.explain()
    assert "vae.encoder: not called yet" in told
    assert all(f"{name}: " in told for name in ("unet", "vae.decoder", "text_encoder"))
    embeds = {"prompt_embeds": torch.randn(1, 5, 32), "negative_prompt_embeds": torch.randn(1, 5, 32)}
    options = {**embeds, "height": 24, "width": 16, "num_images_per_prompt": 2}
    close(result(fast, **options), result(eager, **options))
    assert not np.array_equal(result(fast, **options, guidance_scale=1.0), result(fast, **options))


def test_image_to_image_and_inpainting(pipes: tuple[Any, Any]) -> None:
    picture, mask = torch.rand(2, 3, 16, 16), torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:12, 6:] = 1
    for kind, more in (
        (diffusers.StableDiffusionImg2ImgPipeline, {"strength": 0.8}),
        (diffusers.StableDiffusionInpaintPipeline, {"mask_image": mask, "height": 16, "width": 16}),
    ):
        eager, fast = (kind(**pipe.components, requires_safety_checker=False) for pipe in pipes)
        options = {**PROMPT, "image": picture, "num_inference_steps": 3, **more}
        close(result(fast, **options), result(eager, **options))
    assert "vae.encoder: not called yet" not in pipes[1].explain()


def test_controlnet(pipes: tuple[Any, Any]) -> None:
    small = {"block_out_channels": (16,), "down_block_types": ("CrossAttnDownBlock2D",)}
    control = toys.controlnet(**small, conditioning_embedding_out_channels=(16, 32))
    eager, fast = (
        diffusers.StableDiffusionControlNetPipeline(
            **pipe.components, controlnet=copy.deepcopy(control), requires_safety_checker=False
        )
        for pipe in pipes
    )
    denoiser = fast.unet.forward
    fast = accelerate(fast)
    assert fast.unet.forward is denoiser and fast.controlnet.forward is not denoiser
    options = {**PROMPT, "image": torch.rand(2, 3, 16, 16), "height": 16, "width": 16}
    for scale in (1.0, 0.3):
        got = result(fast, **options, controlnet_conditioning_scale=scale)
        close(got, result(eager, **options, controlnet_conditioning_scale=scale))
    assert "controlnet: " in fast.explain() and "controlnet: not" not in fast.explain()


def test_stable_diffusion_xl(pipes: tuple[Any, Any]) -> None:
    unet = toys.small_unet_condition(
        cross_attention_dim=64,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
    )
    second = text_encoder(toys.clip_text_projected)
    eager, fast = (
        diffusers.StableDiffusionXLPipeline(
            vae=pipe.vae,
            text_encoder=pipe.text_encoder,
            text_encoder_2=copy.deepcopy(second),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
            unet=copy.deepcopy(unet),
            scheduler=diffusers.EulerDiscreteScheduler(),
            add_watermarker=False,
        )
        for pipe in pipes
    )
    fast = accelerate(fast)
    for options in ({**PROMPT, "height": 16, "width": 16}, {"prompt": "a dog", "height": 16, "width": 24}):
        close(result(fast, **options), result(eager, **options))


def test_diffusion_transformer(pipes: tuple[Any, Any]) -> None:
    model = toys.dit(num_layers=1, num_embeds_ada_norm=1000)
    eager, fast = (
        diffusers.DiTPipeline(copy.deepcopy(model), pipe.vae, image_scheduler(), {0: "cat", 1: "dog"})
        for pipe in pipes
    )
    fast = accelerate(fast)
    for labels in ([1, 0], [1]):
        close(result(fast, class_labels=labels), result(eager, class_labels=labels))


def test_audio() -> None:
    pipe = diffusers.AudioLDMPipeline(
        vae=toys.autoencoder(in_channels=1, out_channels=1, scaling_factor=1.0),
        text_encoder=toys.clap_text(),
        tokenizer=tokenizer(),
        unet=toys.small_unet_condition(
            cross_attention_dim=(16,),
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=24,
            class_embeddings_concat=True,
        ),
        scheduler=image_scheduler(),
        vocoder=toys.vocoder(),
    )
    fast = accelerate(copy.deepcopy(pipe))
    for options in ({**PROMPT, "audio_length_in_s": 0.004}, {"prompt": "a dog", "audio_length_in_s": 0.008}):
        close(result(fast, "audios", **options), result(pipe, "audios", **options))
    told = fast.explain()
    assert all(f"{name}: not" not in told for name in ("unet", "vae.decoder", "text_encoder", "vocoder"))


def test_what_cannot_be_captured_runs_as_it_is() -> None:
    class Odd(diffusers.UNet2DModel):
        def forward(self, sample: Tensor, timestep: Any, **more: Any) -> Any:
            return super().forward(sample if sample.sum() > 0 else sample, timestep, **more)

    pipe = diffusers.DDIMPipeline(Odd(**toys.small_unet2d().config).eval(), diffusers.DDIMScheduler())
    wanted = result(pipe, batch_size=1)
    fast = accelerate(pipe)
    with pytest.warns(RuntimeWarning, match="Odd can't be captured: .*; it runs as it is"):
        assert (result(fast, batch_size=1) == wanted).all()
    assert "unet: runs as it is: accelerate: Odd can't be captured" in fast.explain()
