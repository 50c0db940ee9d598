"""Loads Stable Diffusion 1 or 2 from a hub id, a diffusers folder or a single file, or builds `tiny`."""

from functools import partial

import torch
from diffusers import StableDiffusionPipeline

from sliders.config.schema import PretrainedModel
from sliders.models.diffusers_unet import kinds, sources
from sliders.models.diffusers_unet.loading import load_pipeline
from sliders.models.sd.base import SD1_PARTS, SD2_PARTS
from sliders.models.sd.model import SD1_FACTS, SD2_FACTS, StableDiffusion
from sliders.models.sd.narrow import build_narrow_sd

NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def check_source(settings: PretrainedModel) -> None:
    """Raises InputError if the model is missing, cannot be read, not the version that `v2` says, not whole, or of another noise.

    Files of SD 2 with and without v-prediction need not differ: where one states nothing, `v_pred` counts, or else the
    scheduler of its JSON files.
    """
    sources.check_source(settings, *_kind(settings))


def _kind(settings: PretrainedModel) -> tuple[kinds.Kind, dict[str, dict]]:
    """The version that `v2` says, and the configs of its parts."""
    return (kinds.SD2, SD2_PARTS) if settings.v2 else (kinds.SD1, SD1_PARTS)


def load_sd(settings: PretrainedModel, dtype: torch.dtype) -> StableDiffusion:
    """Returns the model on the CPU, its VAE in float32, the rest in `dtype`, or for `place` to convert.

    Raises InputError if the source is missing, damaged or not a base model of the version that `v2` says.
    """
    kind, base = _kind(settings)
    build_tiny = partial(build_narrow_sd, v2=settings.v2)
    pipe, schedule = load_pipeline(StableDiffusionPipeline, kind, settings, dtype, base, build_tiny, **NO_CHECKER)
    facts = SD2_FACTS if settings.v2 else SD1_FACTS
    return StableDiffusion(facts, pipe, schedule, settings.name_or_path, settings.clip_skip, dtype)
