"""UNets without weights, so that layers can be counted before a model is downloaded."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from sliders.models.diffusers_unet.sources import TINY, unet_config


def build_weightless(
    name_or_path: str, base: dict, build_tiny: Callable[[], UNet2DConditionModel]
) -> UNet2DConditionModel:
    """Builds a UNet on the meta device: a diffusers folder's from its config, `tiny`'s, or else one with the config `base`."""
    config = unet_config(Path(name_or_path))
    with torch.device("meta"):
        if name_or_path == TINY:
            return build_tiny()
        return UNet2DConditionModel.from_config(base if config is None else config)
