"""How the UNet computes attention: `other.use_xformers` and `other.use_pytorch_SDPA` → what is set on it."""

import importlib.util

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from sliders.errors import InputError
from sliders.schema import Other


def check_attention(settings: Other) -> None:
    if settings.use_xformers and importlib.util.find_spec("xformers") is None:
        raise InputError(
            "other.use_xformers is true, but xformers is not installed: set it to false; PyTorch's own attention is as fast."
        )


def set_attention(unet: UNet2DConditionModel, settings: Other) -> None:
    """xformers if asked for, else PyTorch's scaled_dot_product_attention, else the plain matrix products."""
    check_attention(settings)
    if settings.use_xformers:
        unet.enable_xformers_memory_efficient_attention()
    else:
        unet.set_attn_processor(AttnProcessor2_0() if settings.use_pytorch_SDPA else AttnProcessor())
