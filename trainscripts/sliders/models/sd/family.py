"""Stable Diffusion 1 and 2 as model families. They differ in widths, in projections, and in how web UIs name them."""

from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from sliders.config.schema import PretrainedModel
from sliders.models.base import Family
from sliders.models.diffusers_unet import kinds
from sliders.models.diffusers_unet.family import UNetFamily
from sliders.models.objective import V_PREDICTION
from sliders.models.sd.configs import SD1_PARTS, SD2_PARTS
from sliders.models.sd.keys import file_key, original_sd_name, sd_file_keys
from sliders.models.sd.model import StableDiffusion
from sliders.models.sd.narrow import NarrowSD, build_narrow_sd, build_unet

NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


class StableDiffusionFamily(UNetFamily):
    """Files of SD 2 with and without v-prediction need not differ: where one states nothing, `v_pred` counts, or else the
    scheduler of its JSON files.
    """

    pipeline, model = StableDiffusionPipeline, StableDiffusion
    options = NO_CHECKER

    @property
    def v2(self) -> bool:
        return self.kind is kinds.SD2

    def variant(self, settings: PretrainedModel) -> Family:
        return SD2_FAMILY if settings.v2 else SD1_FAMILY

    def build_tiny(self) -> StableDiffusionPipeline:
        return build_narrow_sd(v2=self.v2)

    def build_tiny_unet(self) -> UNet2DConditionModel:
        return build_unet(NarrowSD(), self.v2)

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


SD1_FAMILY = StableDiffusionFamily(kinds.SD1, SD1_PARTS)
SD2_FAMILY = StableDiffusionFamily(kinds.SD2, SD2_PARTS)
