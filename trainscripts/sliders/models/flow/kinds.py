"""What tells the kinds of flow models apart before they are loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from sliders.config.families import Facts

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class SingleFile:
    """The transformer in a single file with its original names, which here stand without what the file puts before them."""

    telling: tuple[str, ...]  # keys that every such file has, and others have not
    config_of: Callable[[Shapes], dict[str, Any]]  # {key: shape} → the transformer's config.json
    shapes_of: Callable[[Mapping[str, Tensor]], Shapes]  # {parameter that is adapted: its value} → {key: shape}
    # {key: tensor}, {parameter: its empty value}, dtype → {parameter: its value}
    state_of: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], torch.dtype], dict[str, Tensor]]


@dataclass(frozen=True)
class Kind:
    """A kind of pipeline with `transformer`, `vae` and `text_encoder`, and which of its transformers are supported."""

    facts: Facts
    pipeline: type[DiffusionPipeline]
    transformer: type[ModelMixin]
    vae: type[ModelMixin]
    usual: Mapping[str, Any]  # config of the usual model's transformer
    narrow: Mapping[str, Any]  # and of that of `tiny`
    fixed: tuple[str, ...]  # keys of that config which must be as usual
    prompt: str  # key of that config: how many values it reads per token of a prompt,
    states: int  # from how many of the text encoder's hidden states
    check: Callable[[Mapping, str], None]  # config, place → raises InputError if the transformer is not supported
    adapted: Callable[[nn.Module], nn.Module]  # the transformer → its form that is adapted
    single_file: SingleFile

    def build_empty(self, part: str, config: Mapping[str, Any]) -> nn.Module:
        """A part of the pipeline with its parameters on the meta device. Raises what the libraries raise for a wrong config."""
        with init_empty_weights():
            if part == "text_encoder":
                return Qwen3ForCausalLM(Qwen3Config.from_dict(dict(config)))
            return (self.vae if part == "vae" else self.transformer).from_config(dict(config))

    def build_adapted(self, config: Mapping[str, Any]) -> nn.Module:
        """The transformer that is adapted, with its parameters on the meta device. Raises what diffusers raises for a wrong config."""
        return self.adapted(self.build_empty("transformer", config))
