"""A loaded flow model."""

from typing import ClassVar

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from sliders.config.families import Facts
from sliders.models.objective import Objective
from sliders.models.pipeline import PipelineModel
from sliders.system.errors import InputError

TIMESTEPS = 1000
TEXT_LENGTH = 512  # tokens of a prompt at most


class FlowModel(PipelineModel):
    """Its pipeline samples by Euler's method, and reads hidden states of Qwen3."""

    part = "transformer"
    encoders = ("text_encoder",)
    thinking: ClassVar[bool]  # Qwen3's template for prompts: False adds an empty thought to the answer's beginning

    def __init__(self, facts: Facts, pipe: DiffusionPipeline, name: str, dtype: torch.dtype | None = None):
        super().__init__(facts, pipe, Objective.rectified_flow(TIMESTEPS), name, dtype)

    @torch.no_grad()
    def encode_image(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """The posterior's mode, without deviation, as diffusers' scripts for these models train on it."""
        mode, deviation = super().encode_image(image)
        return mode, torch.zeros_like(deviation)

    def _length(self, prompt: str) -> tuple[int, int]:
        turn, tokenizer = [{"role": "user", "content": prompt}], self.pipe.tokenizer
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": self.thinking}
        return len(tokenizer(tokenizer.apply_chat_template(turn, **options)).input_ids), TEXT_LENGTH

    def check_sampling(self, place: str, remedy: str | None) -> None:
        if not isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            raise InputError(
                f"{place}: the model's own scheduler, {type(self.scheduler).__name__}, cannot sample from a rectified flow: choose a "
                "model with FlowMatchEulerDiscreteScheduler."
            )
