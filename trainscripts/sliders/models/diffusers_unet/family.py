"""What model families with a UNet in a diffusers pipeline have in common."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from sliders.config.schema import SAMPLERS, PretrainedModel
from sliders.models.base import Family
from sliders.models.diffusers_unet import sources
from sliders.models.diffusers_unet.keys import UNET_ENDS
from sliders.models.diffusers_unet.kinds import Kind
from sliders.models.diffusers_unet.loading import load_pipeline
from sliders.models.diffusers_unet.model import UNetModel
from sliders.models.diffusers_unet.weightless import build_weightless


class UNetFamily(Family):
    """Loads a model from a hub id, a diffusers folder or a single file, or builds the narrow one that is called `tiny`."""

    pipeline: type[DiffusionPipeline]
    options: Mapping[str, Any] = {}  # for the pipeline's loader
    model: type[UNetModel]
    samplers = tuple(SAMPLERS)

    def __init__(self, kind: Kind, configs: Mapping[str, Mapping]):
        """configs: {part of the pipeline: its config.json}, of the family's usual model."""
        self.kind, self.facts, self.configs = kind, kind.facts, configs

    @abstractmethod
    def build_tiny(self) -> DiffusionPipeline:
        """`tiny`, on the CPU in float32."""

    @abstractmethod
    def build_tiny_unet(self) -> UNet2DConditionModel:
        """Its UNet, whose weights are not those of `tiny`."""

    def check_source(self, settings: PretrainedModel) -> None:
        sources.check_source(settings, self.kind, self.configs)

    def load(self, settings: PretrainedModel, dtype: torch.dtype) -> UNetModel:
        pipe, objective = load_pipeline(
            self.pipeline, self.kind, settings, dtype, self.configs, self.build_tiny, **self.options
        )
        return self.model(self.facts, pipe, objective, settings.name_or_path, settings.clip_skip, dtype)

    def outer_spellings(self, module: str) -> tuple[str, ...]:
        return module, UNET_ENDS.get(module, module)

    def weightless_denoiser(self, name_or_path: str) -> UNet2DConditionModel:
        return build_weightless(name_or_path, self.configs["unet"], self.build_tiny_unet)
