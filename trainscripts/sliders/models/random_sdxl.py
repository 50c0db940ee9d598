"""SDXL at full size with random weights: seconds and memory need no real ones."""

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel

from sliders.models.narrow import build_scheduler
from sliders.models.schedule import EPSILON, NoiseSchedule
from sliders.models.sdxl import SDXL, PromptEmbeds
from sliders.models.sdxl_unet import SDXL_BASE_UNET

SDXL_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}


class RandomSDXL(SDXL):
    """SDXL-base's UNet and VAE at full size with random weights, made on the device; prompts are random embeddings."""

    def __init__(self, device: str, dtype: torch.dtype, seed: int = 0):
        torch.manual_seed(seed)
        with torch.device(device):
            vae = AutoencoderKL(**SDXL_VAE)
            torch.set_default_dtype(dtype)
            unet = UNet2DConditionModel(**SDXL_BASE_UNET)
            torch.set_default_dtype(torch.float32)
        pipe = StableDiffusionXLPipeline(
            vae=vae, unet=unet, scheduler=build_scheduler(), text_encoder=None, text_encoder_2=None,
            tokenizer=None, tokenizer_2=None, add_watermarker=False,
        )  # fmt: skip
        super().__init__(
            pipe, NoiseSchedule.from_scheduler_config(dict(pipe.scheduler.config), EPSILON, False), "random"
        )

    def encode_prompts(self, prompts: list[str], device: str) -> dict[str, PromptEmbeds]:
        shape, dtype = self.unet.config, self.unet.dtype
        pooled = shape.projection_class_embeddings_input_dim - 6 * shape.addition_time_embed_dim
        draw = {"device": device, "dtype": dtype}
        return {
            p: PromptEmbeds(torch.randn(77, shape.cross_attention_dim, **draw), torch.randn(pooled, **draw))
            for p in prompts
        }
