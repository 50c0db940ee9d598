"""Checks where an SDXL model comes from before its weights are loaded."""

from sliders.config.schema import PretrainedModel
from sliders.models.diffusers_unet import sources


def check_source(settings: PretrainedModel) -> tuple[bool, bool] | None:
    """Returns (v-prediction, zero terminal SNR) as a single file's keys announce them, None for other sources.

    Raises InputError if the model is missing, cannot be read, or is not SDXL.
    """
    return sources.check_source(settings, sources.SDXL)
