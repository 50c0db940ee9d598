"""Stable Diffusion's UNets without weights, so that layers can be counted before a model is downloaded."""

from diffusers import UNet2DConditionModel

from sliders.models.diffusers_unet.weightless import build_weightless
from sliders.models.sd.narrow import BLOCKS, NarrowSD, build_unet

SD1_UNET = {
    **BLOCKS,
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # in spite of its name, the number of heads; they have 40, 80 and 160 values
}
SD2_UNET = {
    **SD1_UNET,
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}


def weightless_unet(name_or_path: str, v2: bool) -> UNet2DConditionModel:
    return build_weightless(name_or_path, SD2_UNET if v2 else SD1_UNET, lambda: build_unet(NarrowSD(), v2))
