"""Flow models as families."""

from collections.abc import Callable
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import nn

from sliders.config.schema import PretrainedModel, Settings
from sliders.models.base import Family
from sliders.models.flow.kinds import Kind
from sliders.models.flow.model import FlowModel
from sliders.models.flow.sources import check_source, load_pipeline, transformer_config
from sliders.models.places import TINY
from sliders.system.errors import InputError


class FlowFamily(Family):
    """Subclasses name the layers, and say what is remarkable."""

    alpha_is_rank = True
    kind: ClassVar[Kind]
    model: ClassVar[type[FlowModel]]
    narrow: ClassVar[Callable[[], DiffusionPipeline]]  # builds the model `tiny`
    # {kernel of other.attention that is refused: why}
    kernels: ClassVar[dict[str, str]] = dict.fromkeys(("xformers", "flash-attn"), "its attention is PyTorch's own")

    def check_settings(self, settings: Settings) -> None:
        super().check_settings(settings)
        if reason := self.kernels.get(settings.other.attention):
            raise InputError(
                f"other.attention: {settings.other.attention} is not used by {self.facts.title}, because {reason}: use auto."
            )

    def check_source(self, settings: PretrainedModel) -> None:
        check_source(settings, self.kind)

    def load(self, settings: PretrainedModel, dtype: torch.dtype) -> FlowModel:
        if settings.name_or_path == TINY:
            pipe = self.narrow()
            pipe.transformer.to(dtype)
            pipe.text_encoder.to(dtype)
            encoder = None
        else:
            pipe, encoder = load_pipeline(settings, self.kind, dtype)
        return self.model(self.facts, pipe, settings.name_or_path, dtype, encoder)

    def weightless_denoiser(self, name_or_path: str) -> nn.Module:
        return self.kind.build_adapted(transformer_config(name_or_path, self.kind))
