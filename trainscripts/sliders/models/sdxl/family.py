"""SDXL as a model family."""

import torch
from torch import nn

from sliders.config.schema import PretrainedModel
from sliders.models.base import Family, Model
from sliders.models.sdxl.keys import file_key, sdxl_file_keys, sgm_name
from sliders.models.sdxl.loading import load_sdxl
from sliders.models.sdxl.model import SDXL_FACTS
from sliders.models.sdxl.sources import check_source
from sliders.models.sdxl.unet import weightless_unet
from sliders.system.errors import InputError


class SDXLFamily(Family):
    facts = SDXL_FACTS

    def check_source(self, settings: PretrainedModel) -> None:
        if settings.v2:
            raise InputError(
                "pretrained_model.v2: true means Stable Diffusion 2, but this is a script for SDXL: remove the key, or use "
                "train_lora-scale.py."
            )
        check_source(settings)

    def load(self, settings: PretrainedModel, dtype: torch.dtype) -> Model:
        return load_sdxl(settings, dtype)

    def weightless_denoiser(self, name_or_path: str) -> nn.Module:
        return weightless_unet(name_or_path)

    def file_key(self, module: str) -> str:
        return file_key(module)

    def file_keys(self) -> frozenset[str]:
        return sdxl_file_keys()

    def spellings(self, module: str) -> tuple[str, ...]:
        return module, sgm_name(module)

    def metadata(self, prediction_type: str | None) -> dict[str, str]:
        return {
            "ss_base_model_version": "sdxl_base_v1-0",  # without it, A1111 takes a file with metadata for SD 1
            "ss_v2": "False",
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",  # by which Forge recognises SDXL
            # as kohya's scripts write for every LoRA of SDXL (library/sai_model_spec.py)
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        }


SDXL_FAMILY = SDXLFamily()
