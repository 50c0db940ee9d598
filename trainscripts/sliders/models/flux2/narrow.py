"""A narrow FLUX.2 [klein] with random weights: the module names and the latents of the 4B model, small enough for a CPU."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)

from sliders.models.flow.qwen import build_text_encoder, build_tokenizer
from sliders.models.flux2.configs import NARROW, SCHEDULER
from sliders.models.seeded import seeded

TEXT_LAYERS = 28  # 36; the last that is read is the 27th
LATENT_CHANNELS = 32  # as in the full model, so that a latent has its 128 channels
VAE_WIDTHS = (8, 8, 8, 8)


def build_narrow_klein(
    seed: int = 0, distilled: bool = False, transformer_config: Mapping[str, Any] = NARROW, vae_widths: tuple[int, ...] = VAE_WIDTHS,
    vae_groups: int = 4, words: Iterable[str] = (), text_deviation: float = 0.02,
) -> Flux2KleinPipeline:  # fmt: skip
    """Builds a pipeline on the CPU in float32. Its weights depend on `seed` alone; global generators do not change.

    words, text_deviation: see `build_tokenizer` and `build_text_encoder`.
    """
    words = tuple(words)
    with seeded(seed):
        transformer, vae = Flux2Transformer2DModel(**transformer_config), build_vae(vae_widths, vae_groups)
        text_encoder = build_text_encoder(TEXT_LAYERS, words, text_deviation)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=build_tokenizer(words),
        transformer=transformer.eval(),
        is_distilled=distilled,
    )


def build_vae(widths: tuple[int, ...] = VAE_WIDTHS, groups: int = 4) -> AutoencoderKLFlux2:
    """Its latents have statistics of their own, unlike those of a new VAE: what leaves them out computes something else."""
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=groups,
        sample_size=64,
    )
    vae.bn.running_mean.copy_(torch.randn_like(vae.bn.running_mean) / 4)
    vae.bn.running_var.copy_(torch.rand_like(vae.bn.running_var) / 4 + 0.1)
    return vae
