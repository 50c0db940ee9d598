"""Loads SDXL from a hub id, a diffusers folder or a single file, or builds `tiny`."""

import torch
from diffusers import StableDiffusionXLPipeline

from sliders.config.schema import PretrainedModel
from sliders.models.diffusers_unet import kinds
from sliders.models.diffusers_unet.loading import load_pipeline
from sliders.models.sdxl.base import BASE_PARTS
from sliders.models.sdxl.model import SDXL
from sliders.models.sdxl.narrow import build_narrow_sdxl


def load_sdxl(settings: PretrainedModel, dtype: torch.dtype) -> SDXL:
    """Returns the model on the CPU, its VAE in float32, the rest in `dtype`, or for `place` to convert.

    Raises InputError if the source is missing, damaged or not an SDXL base model.
    """
    pipe, schedule = load_pipeline(
        StableDiffusionXLPipeline, kinds.SDXL, settings, dtype, BASE_PARTS, build_narrow_sdxl, add_watermarker=False
    )
    return SDXL(pipe, schedule, settings.name_or_path, settings.clip_skip, dtype)
