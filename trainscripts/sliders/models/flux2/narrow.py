"""A narrow FLUX.2 [klein] with random weights: the module names and the latents of the 4B model, small enough for a CPU."""

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


def build_narrow_klein(seed: int = 0, distilled: bool = False) -> Flux2KleinPipeline:
    """Builds a pipeline on the CPU in float32. Its weights depend on `seed` alone; global generators do not change."""
    with seeded(seed):
        transformer, vae = Flux2Transformer2DModel(**NARROW), build_vae()
        text_encoder = build_text_encoder(TEXT_LAYERS)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=build_tokenizer(),
        transformer=transformer.eval(),
        is_distilled=distilled,
    )


def build_vae() -> AutoencoderKLFlux2:
    """Its latents have statistics of their own, unlike those of a new VAE: what leaves them out computes something else."""
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=64,
    )
    vae.bn.running_mean.copy_(torch.randn_like(vae.bn.running_mean) / 4)
    vae.bn.running_var.copy_(torch.rand_like(vae.bn.running_var) / 4 + 0.1)
    return vae
