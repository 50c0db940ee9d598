"""A narrow Z-Image with random weights: the module names and the latents of the full model, small enough for a CPU."""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

from sliders.models.flow.qwen import build_text_encoder, build_tokenizer
from sliders.models.seeded import seeded
from sliders.models.zimage.configs import NARROW, SCHEDULER, SHIFT

TEXT_LAYERS = 4  # 36 in Qwen3-4B


def build_narrow_zimage(seed: int = 0, shift: float = SHIFT) -> ZImagePipeline:
    """Builds a pipeline on the CPU in float32. Its weights depend on `seed` alone; global generators do not change."""
    with seeded(seed):
        transformer, vae, text_encoder = _build_transformer(), _build_vae(), build_text_encoder(TEXT_LAYERS)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{**SCHEDULER, "shift": shift}),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=build_tokenizer(),
        transformer=transformer.eval(),
    )


def _build_transformer() -> ZImageTransformer2DModel:
    """Its pad tokens are not the zeros of a new one: what leaves them out computes something else."""
    transformer = ZImageTransformer2DModel(**NARROW)
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    return transformer


def _build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=NARROW["in_channels"],
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
