"""Published networks of diffusers and transformers, tiny and with random weights, and arguments for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

MARKS = [
    pytest.mark.filterwarnings("ignore:accelerate. .* run through torch:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("one_thread", "seeded"),
]
UNET = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 8}
CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
}


def without_zeros(model: nn.Module) -> nn.Module:
    """Layers that begin at zero, as those of ControlNet and adaLN, would hide what's before them."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def unet2d(**more: Any) -> nn.Module:
    from diffusers import UNet2DModel

    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return without_zeros(UNet2DModel(**{**UNET, **blocks, **more}))


def small_unet2d(**more: Any) -> nn.Module:
    """One level, for tests of something else."""
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return unet2d(block_out_channels=(16,), **blocks, **more)


def unet_condition(**more: Any) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return without_zeros(UNet2DConditionModel(**{**UNET, **CROSS, **more}))


def small_unet_condition(**more: Any) -> nn.Module:
    """One level, for tests of something else."""
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    return unet_condition(block_out_channels=(16,), **blocks, **more)


def unet_xl(**more: Any) -> nn.Module:
    """Stable Diffusion XL's: times and pooled text beside the timestep, more transformers further down."""
    options = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 80,
    }
    return unet_condition(**{**options, **more})


def unet3d() -> nn.Module:
    """ModelScope's: convolutions and attention over frames between those over pixels."""
    from diffusers import UNet3DConditionModel

    blocks = {"down_block_types": ("CrossAttnDownBlock3D",), "up_block_types": ("CrossAttnUpBlock3D",)}
    return without_zeros(
        UNet3DConditionModel(**{**UNET, **CROSS, **blocks, "block_out_channels": (16,)}),
    )


def motion_unet() -> nn.Module:
    """AnimateDiff's: Stable Diffusion's with attention over frames."""
    from diffusers import UNetMotionModel

    return without_zeros(
        UNetMotionModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(16,),
            norm_num_groups=8,
            down_block_types=("CrossAttnDownBlockMotion",),
            up_block_types=("CrossAttnUpBlockMotion",),
            cross_attention_dim=32,
            num_attention_heads=2,
            motion_num_attention_heads=2,
            motion_max_seq_length=8,
        )
    )


def controlnet(**more: Any) -> nn.Module:
    from diffusers import ControlNetModel

    options = {name: value for name, value in {**UNET, **CROSS}.items() if name not in ("sample_size",)}
    del options["up_block_types"]
    return without_zeros(
        ControlNetModel(**{**options, "conditioning_embedding_out_channels": (16, 32), **more})
    )


def autoencoder(**more: Any) -> nn.Module:
    from diffusers import AutoencoderKL

    options = {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 8,
        "latent_channels": 4,
    }
    return without_zeros(AutoencoderKL(**{**options, **more}))


def tiny_autoencoder() -> nn.Module:
    from diffusers import AutoencoderTiny

    widths, blocks = (16, 16), (1, 1)
    return without_zeros(
        AutoencoderTiny(
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            num_encoder_blocks=blocks,
            num_decoder_blocks=blocks,
        )
    )


def dit(**more: Any) -> nn.Module:
    from diffusers import DiTTransformer2DModel

    options = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "out_channels": 8,
        "num_layers": 2,
        "sample_size": 8,
        "num_embeds_ada_norm": 10,
    }
    return without_zeros(DiTTransformer2DModel(**{**options, **more}))


def pixart() -> nn.Module:
    from diffusers import PixArtTransformer2DModel

    return without_zeros(
        PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            out_channels=8,
            num_layers=1,
            cross_attention_dim=32,
            sample_size=8,
            caption_channels=24,
            use_additional_conditions=False,
        )
    )


def sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return without_zeros(
        SD3Transformer2DModel(
            sample_size=16,
            in_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            out_channels=4,
        )
    )


def flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return without_zeros(
        FluxTransformer2DModel(
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 4, 8],
            guidance_embeds=True,
        )
    )


def unet1d() -> nn.Module:
    """A planner's: residual blocks of 1-D convolutions."""
    from diffusers import UNet1DModel

    return without_zeros(
        UNet1DModel(
            in_channels=6,
            out_channels=6,
            time_embedding_type="positional",
            use_timestep_embedding=True,
            flip_sin_to_cos=False,
            freq_shift=1,
            block_out_channels=(32, 64),
            down_block_types=("DownResnetBlock1D", "DownResnetBlock1D"),
            mid_block_type="MidResTemporalBlock1D",
            up_block_types=("UpResnetBlock1D",),
            out_block_type="OutConv1DBlock",
            act_fn="mish",
        )
    )


def video_unet() -> nn.Module:
    """Stable Video Diffusion's."""
    from diffusers import UNetSpatioTemporalConditionModel

    return without_zeros(
        UNetSpatioTemporalConditionModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(32,),
            down_block_types=("CrossAttnDownBlockSpatioTemporal",),
            up_block_types=("CrossAttnUpBlockSpatioTemporal",),
            cross_attention_dim=32,
            num_attention_heads=(2,),
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24,
        )
    )


def clip_text(**more: Any) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(_clip_config(CLIPTextConfig, **more)).eval()


def clip_text_projected(**more: Any) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(_clip_config(CLIPTextConfig, projection_dim=32, **more)).eval()


def _clip_config(kind: Any, **more: Any) -> Any:
    options = {
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    return kind(**{**options, **more})


def clap_text() -> nn.Module:
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    return ClapTextModelWithProjection(
        ClapTextConfig(
            vocab_size=99,
            hidden_size=16,
            intermediate_size=37,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
            projection_dim=24,
        )
    ).eval()


def t5_encoder() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    ).eval()


def vocoder() -> nn.Module:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8,
            upsample_initial_channel=16,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3, 7],
            resblock_dilation_sizes=[[1, 3], [1, 3]],
            normalize_before=False,
        )
    ).eval()


def residuals(batch: int, size: int) -> dict[str, Any]:
    """What a ControlNet gives `unet_condition`."""
    down = [torch.randn(batch, 16, size, size) for _ in range(2)]
    down += [torch.randn(batch, width, size // 2, size // 2) for width in (16, 32)]
    return {
        "down_block_additional_residuals": tuple(down),
        "mid_block_additional_residual": torch.randn(batch, 32, size // 2, size // 2),
    }


def flux_arguments(batch: int, size: int) -> dict[str, Any]:
    rows = size // 2
    places = torch.nn.functional.pad(torch.cartesian_prod(*[torch.arange(float(rows))] * 2), (1, 0))
    return {
        "hidden_states": torch.randn(batch, rows * rows, 4),
        "encoder_hidden_states": torch.randn(batch, 7, 32),
        "pooled_projections": torch.randn(batch, 32),
        "timestep": torch.full((batch,), 0.7),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": places,
        "txt_ids": torch.zeros(7, 3),
    }


def error(got: Any, wanted: Any) -> float:
    """The largest relative error of any tensor in two equal structures."""
    (a, spec), (b, other) = pytree.tree_flatten(got), pytree.tree_flatten(wanted)
    assert spec == other and type(got) is type(wanted)
    errors = [0.0]
    for x, y in zip(a, b, strict=True):
        assert type(x) is type(y)
        if not isinstance(x, Tensor):
            assert x == y
            continue
        assert x.shape == y.shape and x.dtype == y.dtype
        errors.append(((x.double() - y.double()).norm() / y.double().norm()).item())
    return max(errors)


def cast(values: Any, dtype: torch.dtype) -> Any:
    """Arguments with their tensors of floats in another dtype."""
    return pytree.tree_map(
        lambda v: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v, values
    )
