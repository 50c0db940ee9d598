"""A loaded diffusers pipeline as a `Model`."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import nn

from sliders.compute.device import place
from sliders.config.families import Facts
from sliders.models.base import Model, PromptEmbeds, digest, sampled
from sliders.models.objective import Objective


class PipelineModel(Model):
    """Implements what pipelines share. Subclasses know what the denoiser reads, and how pictures are sampled.

    name: the model as the user wrote it. dtype: the denoiser's, unless it is still to be converted to another.
    """

    part: ClassVar[str]  # name of the denoiser in the pipeline
    encoders: ClassVar[tuple[str, ...]]  # names of the text encoders in the pipeline

    def __init__(
        self, facts: Facts, pipe: DiffusionPipeline, objective: Objective, name: str, dtype: torch.dtype | None = None
    ):
        self.facts, self.pipe, self.objective, self.name = facts, pipe, objective, name
        self.denoiser = getattr(pipe, self.part).requires_grad_(False).eval()
        self.dtype = dtype or self.denoiser.dtype
        pipe.vae.requires_grad_(False).eval()
        pipe.set_progress_bar_config(disable=True)

    @property
    def vae(self) -> nn.Module:
        return self.pipe.vae

    @property
    def scheduler(self) -> SchedulerMixin:
        return self.pipe.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: SchedulerMixin) -> None:
        self.pipe.scheduler = scheduler

    def fingerprint(self) -> str:
        parts = (self.denoiser.named_parameters(), self.pipe.vae.named_parameters())
        return digest(chain.from_iterable((*map(sampled, parts), self._sampled_encoders())))

    def _sampled_encoders(self) -> Iterable[bytes]:
        """`sampled` of the text encoders."""
        modules = (getattr(self.pipe, name) for name in self.encoders)
        named = (module.named_parameters() for module in modules if module is not None)  # a random SDXL has none
        return sampled(chain.from_iterable(named))

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], device: str) -> dict[str, PromptEmbeds]:
        for name in self.encoders:
            place(getattr(self.pipe, name), device, self.dtype)
        found = {}
        for prompt in dict.fromkeys(prompts):
            self._warn_if_cut(prompt)
            found[prompt] = self._encode(prompt, torch.device(device))
        return found

    @abstractmethod
    def _encode(self, prompt: str, device: torch.device) -> PromptEmbeds:
        """One prompt, with the text encoders on `device`."""

    @abstractmethod
    def _length(self, prompt: str) -> tuple[int, int]:
        """Number of tokens of a prompt, and how many of them the model reads."""

    def _warn_if_cut(self, prompt: str) -> None:
        length, limit = self._length(prompt)
        if length > limit:
            print(
                f"note: the prompt {prompt[:40]!r}… has {length} tokens, but the model reads only the first {limit}: shorten it."
            )

    def negative(self, prompt: str, embeds: dict[str, PromptEmbeds]) -> PromptEmbeds:
        return embeds[prompt]

    def free_text_encoders(self) -> None:
        for name in self.encoders:
            setattr(self.pipe, name, None)
