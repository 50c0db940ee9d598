"""Loads SDXL from a hub id, a diffusers folder or a single file, or builds `tiny`."""

import torch
from diffusers import StableDiffusionXLPipeline

from sliders.config.schema import PretrainedModel
from sliders.models.diffusers_unet import sources
from sliders.models.diffusers_unet.loading import load_pipeline, set_noise
from sliders.models.sdxl.model import SDXL
from sliders.models.sdxl.narrow import build_narrow_sdxl
from sliders.models.sdxl.sources import check_source


def load_sdxl(settings: PretrainedModel, dtype: torch.dtype) -> SDXL:
    """Returns the model on the CPU, its VAE in float32, the rest in `dtype`, or for `place` to convert.

    Raises InputError if the source is missing, damaged or not an SDXL base model.
    """
    announced = check_source(settings)
    pipe = load_pipeline(
        StableDiffusionXLPipeline, sources.SDXL, settings, dtype, build_narrow_sdxl, add_watermarker=False
    )
    return SDXL(pipe, set_noise(pipe, settings, announced), settings.name_or_path, settings.clip_skip, dtype)
