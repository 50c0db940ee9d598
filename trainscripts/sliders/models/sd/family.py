"""Stable Diffusion 1 and 2 as model families. They differ in widths, in projections, and in how web UIs name them."""

import torch
from torch import nn

from sliders.config.schema import PretrainedModel
from sliders.models.base import Family, Model
from sliders.models.schedule import V_PREDICTION
from sliders.models.sd.keys import file_key, original_sd_name, sd_file_keys
from sliders.models.sd.loading import check_source, load_sd
from sliders.models.sd.model import SD1_FACTS, SD2_FACTS
from sliders.models.sd.unet import weightless_unet


class StableDiffusionFamily(Family):
    def __init__(self, v2: bool):
        self.v2 = v2
        self.facts = SD2_FACTS if v2 else SD1_FACTS

    def variant(self, settings: PretrainedModel) -> Family:
        return SD2_FAMILY if settings.v2 else SD1_FAMILY

    def check_source(self, settings: PretrainedModel) -> None:
        check_source(settings)

    def load(self, settings: PretrainedModel, dtype: torch.dtype) -> Model:
        return load_sd(settings, dtype)

    def weightless_denoiser(self, name_or_path: str) -> nn.Module:
        return weightless_unet(name_or_path, self.v2)

    def file_key(self, module: str) -> str:
        return file_key(module)

    def file_keys(self) -> frozenset[str]:
        return sd_file_keys()

    def spellings(self, module: str) -> tuple[str, ...]:
        return module, original_sd_name(module)

    def metadata(self, prediction_type: str | None) -> dict[str, str]:
        """As kohya's scripts write it (library/sai_model_spec.py)."""
        v = prediction_type == V_PREDICTION
        size = "2-768-v" if v else "2-512"
        return {
            "ss_base_model_version": f"sd_v{2 if self.v2 else 1}{'_v' if v else ''}",
            "ss_v2": str(self.v2),  # by which A1111 tells SD 2 from SD 1
            "modelspec.architecture": f"stable-diffusion-v{size if self.v2 else 1}/lora",
            "modelspec.implementation": "diffusers",
        }


SD1_FAMILY, SD2_FAMILY = StableDiffusionFamily(v2=False), StableDiffusionFamily(v2=True)
