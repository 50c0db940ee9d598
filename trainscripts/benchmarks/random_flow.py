"""FLUX.2 [klein] 4B and Z-Image at full size with random weights, to measure time and memory without a download."""

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    ModelMixin,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from sliders.models.base import PromptEmbeds
from sliders.models.flow.model import TEXT_LENGTH, FlowModel
from sliders.models.flux2 import configs as klein
from sliders.models.flux2.family import KLEIN_FAMILY
from sliders.models.flux2.model import Klein
from sliders.models.zimage import configs as zimage
from sliders.models.zimage.family import ZIMAGE_FAMILY
from sliders.models.zimage.model import ZImage

ZIMAGE_VAE = {  # that of FLUX.1
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
PROMPT_TOKENS = 40  # of a prompt of Z-Image, with its template


def random_transformer(family: str, device: str, dtype: torch.dtype, seed: int = 0) -> ModelMixin:
    """diffusers' own transformer of a family, built on `device`."""
    torch.manual_seed(seed)
    kind, config = {
        "flux2": (Flux2Transformer2DModel, klein.TRANSFORMER),
        "zimage": (ZImageTransformer2DModel, zimage.TRANSFORMER),
    }[family]
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return kind(**config)
    finally:
        torch.set_default_dtype(torch.float32)


class WithoutEncoder(FlowModel):
    """Prompts get random embeddings."""

    tokens: int  # per prompt
    width: int  # values per token

    def encode_prompts(self, prompts: list[str], device: str) -> dict[str, PromptEmbeds]:
        generator = torch.Generator().manual_seed(len(prompts))
        shape, dtype = (self.tokens, self.width), self.denoiser.dtype
        return {
            p: PromptEmbeds(torch.randn(shape, generator=generator).to(device, dtype)) for p in dict.fromkeys(prompts)
        }


class RandomKlein(WithoutEncoder, Klein):
    tokens, width = TEXT_LENGTH, klein.TRANSFORMER["joint_attention_dim"]

    def __init__(self, device: str, dtype: torch.dtype):
        with torch.device(device):
            vae = AutoencoderKLFlux2()
        pipe = Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**klein.SCHEDULER), vae=vae, text_encoder=None, tokenizer=None,
            transformer=random_transformer("flux2", device, dtype),
        )  # fmt: skip
        super().__init__(KLEIN_FAMILY.facts, pipe, "random")


class RandomZImage(WithoutEncoder, ZImage):
    tokens, width = PROMPT_TOKENS, zimage.TRANSFORMER["cap_feat_dim"]

    def __init__(self, device: str, dtype: torch.dtype):
        with torch.device(device):
            vae = AutoencoderKL(**ZIMAGE_VAE)
        pipe = ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**zimage.SCHEDULER), vae=vae, text_encoder=None, tokenizer=None,
            transformer=random_transformer("zimage", device, dtype),
        )  # fmt: skip
        super().__init__(ZIMAGE_FAMILY.facts, pipe, "random")
