"""SDXL-base at full size with random weights, to measure time and memory without a download."""

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from sliders.models.base import PromptEmbeds
from sliders.models.diffusers_unet.narrow import build_scheduler
from sliders.models.objective import EPSILON, Objective
from sliders.models.sdxl.configs import SDXL_UNET, SDXL_VAE
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.model import SDXL


class RandomSDXL(SDXL):
    """SDXL-base's UNet and VAE, built on `device`, without text encoders: prompts get random embeddings."""

    def __init__(self, device: str, dtype: torch.dtype, seed: int = 0):
        torch.manual_seed(seed)
        with torch.device(device):
            vae = AutoencoderKL(**SDXL_VAE)
            torch.set_default_dtype(dtype)
            unet = UNet2DConditionModel(**SDXL_UNET)
            torch.set_default_dtype(torch.float32)
        pipe = StableDiffusionXLPipeline(
            vae=vae, unet=unet, scheduler=build_scheduler(), text_encoder=None, text_encoder_2=None,
            tokenizer=None, tokenizer_2=None, add_watermarker=False,
        )  # fmt: skip
        objective = Objective.from_scheduler_config(dict(pipe.scheduler.config), EPSILON, False)
        super().__init__(SDXL_FAMILY.facts, pipe, objective, "random")

    def encode_prompts(self, prompts: list[str], device: str) -> dict[str, PromptEmbeds]:
        shape, dtype = self.denoiser.config, self.denoiser.dtype
        pooled = shape.projection_class_embeddings_input_dim - 6 * shape.addition_time_embed_dim
        generator = torch.Generator().manual_seed(len(prompts))

        def draw(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator).to(device, dtype)

        return {p: PromptEmbeds(draw(77, shape.cross_attention_dim), draw(pooled)) for p in dict.fromkeys(prompts)}
