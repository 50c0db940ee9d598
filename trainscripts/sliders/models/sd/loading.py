"""Loads Stable Diffusion 1 or 2 from a hub id, a diffusers folder or a single file, or builds `tiny`."""

from functools import partial

import torch
from diffusers import StableDiffusionPipeline

from sliders.config.schema import PretrainedModel
from sliders.models.diffusers_unet import sources
from sliders.models.diffusers_unet.loading import load_pipeline, set_noise
from sliders.models.sd.model import SD1_FACTS, SD2_FACTS, StableDiffusion
from sliders.models.sd.narrow import build_narrow_sd

NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def check_source(settings: PretrainedModel) -> tuple[bool, bool] | None:
    """Returns (v-prediction, zero terminal SNR) where a single file or `v_pred` says so, None where the scheduler does.

    Raises InputError if the model is missing, cannot be read, or is not the version that `v2` says.
    """
    announced = sources.check_source(settings, sources.SD2 if settings.v2 else sources.SD1)
    if announced is None or announced[0] or not settings.v2:
        return announced
    # Files of SD 2 with and without v-prediction do not differ: what the user says counts, or else the config's scheduler.
    return None if settings.v_pred is None else (settings.v_pred, announced[1])


def load_sd(settings: PretrainedModel, dtype: torch.dtype) -> StableDiffusion:
    """Returns the model on the CPU, its VAE in float32, the rest in `dtype`, or for `place` to convert.

    Raises InputError if the source is missing, damaged or not a base model of the version that `v2` says.
    """
    announced = check_source(settings)
    kind, facts = (sources.SD2, SD2_FACTS) if settings.v2 else (sources.SD1, SD1_FACTS)
    build_tiny = partial(build_narrow_sd, v2=settings.v2)
    pipe = load_pipeline(StableDiffusionPipeline, kind, settings, dtype, build_tiny, **NO_CHECKER)
    schedule = set_noise(pipe, settings, announced)
    return StableDiffusion(facts, pipe, schedule, settings.name_or_path, settings.clip_skip, dtype)
