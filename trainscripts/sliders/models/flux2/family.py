"""FLUX.2 [klein] 4B as a model family."""

import torch
from diffusers import Flux2Transformer2DModel

from sliders.config.families import KLEIN
from sliders.config.schema import PretrainedModel, Settings
from sliders.models.base import Family
from sliders.models.flux2.architecture import join_projections
from sliders.models.flux2.keys import file_key, klein_file_keys, original_name
from sliders.models.flux2.model import Klein
from sliders.models.flux2.narrow import build_narrow_klein, build_transformer
from sliders.models.flux2.sources import build_joined, check_source, is_distilled, load_pipeline, transformer_config
from sliders.models.places import TINY
from sliders.system.errors import InputError

FOREIGN_KERNELS = ("xformers", "flash-attn")


class KleinFamily(Family):
    facts = KLEIN

    def check_settings(self, settings: Settings) -> None:
        super().check_settings(settings)
        if settings.other.attention in FOREIGN_KERNELS:
            raise InputError(
                f"other.attention: {settings.other.attention} is not used by {KLEIN.title}, whose attention is PyTorch's own: use auto."
            )

    def check_source(self, settings: PretrainedModel) -> None:
        check_source(settings)

    def load(self, settings: PretrainedModel, dtype: torch.dtype) -> Klein:
        if settings.name_or_path == TINY:
            pipe = build_narrow_klein()
            pipe.transformer.to(dtype)
            pipe.text_encoder.to(dtype)
        else:
            pipe = load_pipeline(settings, dtype)
        return Klein(self.facts, pipe, settings.name_or_path, dtype)

    def weightless_denoiser(self, name_or_path: str) -> Flux2Transformer2DModel:
        if name_or_path == TINY:
            with torch.device("meta"):
                return join_projections(build_transformer())
        return build_joined(transformer_config(name_or_path))

    def remarks(self, settings: Settings) -> list[str]:
        model, network, found = settings.pretrained_model, settings.network, []
        if is_distilled(model.name_or_path):
            found.append(
                f"{model.name_or_path} is step-distilled, which training undoes: train on {KLEIN.example}, and use the slider on either."
            )
        if network.type == "lierla":
            found.append(
                "network.type: lierla also adapts the feed-forward parts of the single blocks, whose two layers compute them together "
                "with attention; and InvokeAI takes a file without feed-forward layers of the double blocks for one of FLUX.1."
            )
        if network.algo != "lora":
            found.append(f"network.algo: {network.algo}: diffusers reads only lora of this model's files.")
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
