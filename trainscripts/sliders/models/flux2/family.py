"""FLUX.2 [klein] 4B as a model family."""

from typing import ClassVar

from sliders.config.families import KLEIN
from sliders.config.schema import PretrainedModel, Settings
from sliders.models.base import Naming
from sliders.models.flow.family import FlowFamily
from sliders.models.flux2.architecture import JOINED
from sliders.models.flux2.keys import file_key, klein_file_keys, original_name
from sliders.models.flux2.kind import KLEIN_KIND, is_distilled
from sliders.models.flux2.model import Klein
from sliders.models.flux2.narrow import build_narrow_klein

UNSPLIT = ("glora", "full")  # algorithms of which SD.Next cannot apply a part of the rows


class KleinFamily(FlowFamily):
    facts, kind, model, narrow = KLEIN, KLEIN_KIND, Klein, staticmethod(build_narrow_klein)
    joined = JOINED
    namings: ClassVar = {
        "diffusers": Naming(lambda module: f"transformer.{module}", "peft", separate=True),
        "ai-toolkit": Naming(lambda module: f"diffusion_model.{original_name(module)}", "peft"),
        "musubi-tuner": Naming(file_key, "kohya"),
    }

    def is_distilled(self, settings: PretrainedModel) -> bool:
        return is_distilled(settings.name_or_path)

    def remarks(self, settings: Settings) -> list[str]:
        model, network, found = settings.pretrained_model, settings.network, []
        if self.is_distilled(model):
            found.append(
                f"{model.name_or_path} is step-distilled, which training undoes: train on {KLEIN.example}, and use the slider on either."
            )
        if network.type == "lierla":
            found.append(
                "network.type: lierla also adapts the feed-forward parts of the single blocks, whose two layers compute them together "
                "with attention; and InvokeAI takes a file without feed-forward layers of the double blocks for one of FLUX.1."
            )
        if network.algo != "lora":
            also = ", and SD.Next skips query, key and value of the double blocks" if network.algo in UNSPLIT else ""
            found.append(f"network.algo: {network.algo}: diffusers reads only lora of this model's files{also}.")
        return found

    def file_key(self, module: str) -> str:
        return file_key(module)

    def file_keys(self) -> frozenset[str]:
        return klein_file_keys()

    def spellings(self, module: str) -> tuple[str, ...]:
        return module, f"transformer.{module}", original_name(module)

    def metadata(self, prediction_type: str | None) -> dict[str, str]:
        return {
            "ss_base_model_version": "flux2_klein_4b",  # as AI Toolkit writes, and SD.Next reads
            "modelspec.architecture": "Flux.2-klein-4b/lora",  # as Musubi Tuner writes
            "modelspec.implementation": "https://github.com/black-forest-labs/flux2",
        }


KLEIN_FAMILY = KleinFamily()
