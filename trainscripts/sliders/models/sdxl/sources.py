"""Checks where an SDXL model comes from before its weights are loaded."""

from sliders.config.schema import PretrainedModel
from sliders.models.diffusers_unet import kinds, sources
from sliders.models.sdxl.base import BASE_PARTS


def check_source(settings: PretrainedModel) -> None:
    """Raises InputError if the model is missing, cannot be read, is not SDXL, not whole, or of another noise."""
    sources.check_source(settings, kinds.SDXL, BASE_PARTS)
