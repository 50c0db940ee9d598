"""A loaded flow model."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from sliders.config.families import Facts
from sliders.models.base import PromptEmbeds
from sliders.models.flow.prompt_cache import PromptCache, cache_folder, cache_key
from sliders.models.flow.text_encoder import StoredEncoder, place_encoder, release
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

    def __init__(
        self, facts: Facts, pipe: DiffusionPipeline, name: str, dtype: torch.dtype | None = None,
        stored: StoredEncoder | None = None,
    ):  # fmt: skip
        """stored: the text encoder, if the pipeline has none."""
        super().__init__(facts, pipe, Objective.rectified_flow(TIMESTEPS), name, dtype)
        self._stored = stored

    def _sampled_encoders(self) -> Iterable[bytes]:
        return self._stored.samples if self._stored else super()._sampled_encoders()

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], device: str) -> dict[str, PromptEmbeds]:
        """Prompts that an earlier run encoded with the same encoder are taken from the cache. Without others, it is not loaded."""
        wanted, cache = list(dict.fromkeys(prompts)), PromptCache(cache_folder() if self._stored else None)
        keys = {prompt: self._key(prompt, device) for prompt in wanted} if self._stored else {}
        found = {prompt: embeds for prompt, key in keys.items() if (embeds := cache.read(key)) is not None}
        found = {prompt: PromptEmbeds(tokens.to(device)) for prompt, tokens in found.items()}
        if found:
            print(f"note: {len(found)} of {len(wanted)} prompts are encoded already, in {cache_folder()}")
        missing = [prompt for prompt in wanted if prompt not in found]
        if missing:
            self._place_encoder(device)
        for prompt in wanted:
            self._warn_if_cut(prompt)
        for prompt in missing:
            found[prompt] = self._encode(prompt, torch.device(device))
            if prompt in keys:
                cache.write(keys[prompt], found[prompt].tokens)
        return {prompt: found[prompt] for prompt in wanted}

    def _place_encoder(self, device: str) -> None:
        if self.pipe.text_encoder is None:
            self.pipe.text_encoder = self._stored.load()
        place_encoder(self.pipe.text_encoder, device, self.dtype)

    def free_text_encoders(self) -> None:
        release(self.pipe.text_encoder)
        super().free_text_encoders()

    def _key(self, prompt: str, device: str) -> str:
        """A GPU rounds otherwise than a CPU."""
        facts = (type(self).__name__, str(self.dtype), torch.device(device).type)
        return cache_key(self._stored.identity, self._tokens(prompt), *facts)

    @torch.no_grad()
    def encode_image(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """The posterior's mode, without deviation, as diffusers' scripts for these models train on it."""
        mode, deviation = super().encode_image(image)
        return mode, torch.zeros_like(deviation)

    def _tokens(self, prompt: str) -> list[int]:
        turn, tokenizer = [{"role": "user", "content": prompt}], self.pipe.tokenizer
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": self.thinking}
        return tokenizer(tokenizer.apply_chat_template(turn, **options)).input_ids

    def _length(self, prompt: str) -> tuple[int, int]:
        return len(self._tokens(prompt)), TEXT_LENGTH

    def check_sampling(self, place: str, remedy: str | None) -> None:
        if not isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            raise InputError(
                f"{place}: the model's own scheduler, {type(self.scheduler).__name__}, cannot sample from a rectified flow: choose a "
                "model with FlowMatchEulerDiscreteScheduler."
            )
