"""SDXL-base's UNet without weights, so that layers can be counted before a model is downloaded."""

import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from sliders.models.sdxl.narrow import NarrowSDXL, build_unet
from sliders.models.sdxl.sources import TINY

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
    """Builds a UNet on the meta device: a diffusers folder's from its config, `tiny`'s, or else SDXL-base's."""
    config = Path(name_or_path) / "unet" / "config.json"
    with torch.device("meta"):
        if name_or_path == TINY:
            return build_unet(NarrowSDXL())
        if config.is_file():
            return UNet2DConditionModel.from_config(json.loads(config.read_text(encoding="utf-8")))
        return UNet2DConditionModel(**SDXL_BASE_UNET)
