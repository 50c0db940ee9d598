"""SDXL-base's UNet without weights, so that layers can be counted before a model is downloaded."""

from diffusers import UNet2DConditionModel

from sliders.models.diffusers_unet.weightless import build_weightless
from sliders.models.sdxl.narrow import NarrowSDXL, build_unet

SDXL_BASE_UNET = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def weightless_unet(name_or_path: str) -> UNet2DConditionModel:
    return build_weightless(name_or_path, SDXL_BASE_UNET, lambda: build_unet(NarrowSDXL()))
