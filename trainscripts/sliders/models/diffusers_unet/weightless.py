"""Parts of a pipeline without weights, so that layers can be counted, and weights checked, before a model is loaded."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sliders.models.diffusers_unet.components import unet_config
from sliders.models.places import TINY

ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}


def build_weightless(
    name_or_path: str, base: dict, build_tiny: Callable[[], UNet2DConditionModel]
) -> UNet2DConditionModel:
    """Builds a UNet on the meta device: a diffusers folder's from its config, `tiny`'s, or else one with the config `base`."""
    config = unet_config(Path(name_or_path))
    with torch.device("meta"):
        if name_or_path == TINY:
            return build_tiny()
        return UNet2DConditionModel.from_config(base if config is None else config)


def build_empty(part: str, config: Mapping) -> nn.Module:
    """A part of a pipeline, by its name there, with its parameters on the meta device, in evaluation mode.

    config: as in its config.json. Raises what the libraries raise for a wrong config.
    """
    with init_empty_weights():
        if part in ENCODERS:
            return ENCODERS[part](CLIPTextConfig.from_dict(dict(config))).eval()
        return (AutoencoderKL if part == "vae" else UNet2DConditionModel).from_config(dict(config)).eval()


def shapes_of(part: str, config: Mapping) -> dict[str, tuple[int, ...]]:
    """{parameter: its shape} of a part. Raises what the libraries raise for a wrong config."""
    return _shapes_of(part, json.dumps(config, sort_keys=True))


@lru_cache(maxsize=16)  # a run's plan asks, and then its loader
def _shapes_of(part: str, config: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in build_empty(part, json.loads(config)).state_dict().items()}
