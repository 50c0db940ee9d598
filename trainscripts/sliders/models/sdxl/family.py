"""SDXL as a model family."""

from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from sliders.config.schema import PretrainedModel
from sliders.models.diffusers_unet import kinds
from sliders.models.diffusers_unet.family import UNetFamily
from sliders.models.sdxl.configs import SDXL_PARTS
from sliders.models.sdxl.keys import file_key, sdxl_file_keys, sgm_name
from sliders.models.sdxl.model import SDXL
from sliders.models.sdxl.narrow import NarrowSDXL, build_narrow_sdxl, build_unet
from sliders.system.errors import InputError


class SDXLFamily(UNetFamily):
    pipeline, options, model = StableDiffusionXLPipeline, {"add_watermarker": False}, SDXL

    def check_source(self, settings: PretrainedModel) -> None:
        if settings.v2:
            raise InputError(
                "pretrained_model.v2: true means Stable Diffusion 2, but this is a script for SDXL: remove the key, or use "
                "train_lora-scale.py."
            )
        super().check_source(settings)

    def build_tiny(self) -> StableDiffusionXLPipeline:
        return build_narrow_sdxl()

    def build_tiny_unet(self) -> UNet2DConditionModel:
        return build_unet(NarrowSDXL())

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


SDXL_FAMILY = SDXLFamily(kinds.SDXL, SDXL_PARTS)
