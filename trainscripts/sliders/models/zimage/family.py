"""Z-Image as a model family."""

from typing import ClassVar

from sliders.config.families import ZIMAGE
from sliders.config.schema import PretrainedModel, Settings
from sliders.models.base import Naming
from sliders.models.flow.family import FlowFamily
from sliders.models.zimage.keys import file_key, zimage_file_keys
from sliders.models.zimage.kind import ZIMAGE_KIND, is_turbo, shift_of
from sliders.models.zimage.model import ZImage
from sliders.models.zimage.narrow import build_narrow_zimage


class ZImageFamily(FlowFamily):
    facts, kind, model, narrow = ZIMAGE, ZIMAGE_KIND, ZImage, staticmethod(build_narrow_zimage)
    spelling = "peft"
    joined: ClassVar = {"qkv": ("to_q", "to_k", "to_v")}
    namings: ClassVar = {
        "diffusers": Naming(lambda module: f"transformer.{module}", "peft"),
        "ai-toolkit": Naming(file_key, "peft"),
        "musubi-tuner": Naming(lambda module: f"lora_unet_{module.replace('.', '_')}", "kohya"),
    }
    kernels = FlowFamily.kernels | {"flash": "prompts of different lengths need a mask, which flash does not take"}

    def is_distilled(self, settings: PretrainedModel) -> bool:
        return is_turbo(settings.name_or_path, shift_of(settings.name_or_path))

    def remarks(self, settings: Settings) -> list[str]:
        name, algo, found = settings.pretrained_model.name_or_path, settings.network.algo, []
        if self.is_distilled(settings.pretrained_model):
            found.append(
                f"{name} is step-distilled, which training undoes: train on {ZIMAGE.example}, and use the slider on either, "
                "or train on a copy that was made for training, such as De-Turbo."
            )
        if algo not in ("lora", "lokr"):
            found.append(f"network.algo: {algo}: diffusers reads only lora and lokr of this model's files.")
        return found

    def file_key(self, module: str) -> str:
        return file_key(module)

    def file_keys(self) -> frozenset[str]:
        return zimage_file_keys()

    def spellings(self, module: str) -> tuple[str, ...]:
        return module, f"transformer.{module}", module.replace("to_out.0", "out")

    def metadata(self, prediction_type: str | None) -> dict[str, str]:
        return {
            "ss_base_model_version": "zimage",  # as AI Toolkit writes, and SD.Next reads
            "modelspec.architecture": "Z-Image/lora",  # as Musubi Tuner writes
            "modelspec.implementation": "https://github.com/Tongyi-MAI/Z-Image",
        }


ZIMAGE_FAMILY = ZImageFamily()
