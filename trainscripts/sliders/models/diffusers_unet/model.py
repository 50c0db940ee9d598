"""A loaded diffusers pipeline with a UNet, as a `Model`."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor, nn

from sliders.compute.device import place
from sliders.config.families import Facts
from sliders.models.base import AfterStep, Model, PromptEmbeds, fingerprint
from sliders.models.diffusers_unet.samplers import as_sampler, check_scheduler
from sliders.models.objective import Objective


class PipelineModel(Model):
    """Implements what pipelines share. Subclasses know what the denoiser is conditioned on.

    name: the model as the user wrote it. clip_skip: text-encoder layers to skip, counted back from the usual one. dtype:
    the UNet's, unless it is still to be converted to another.
    """

    encoders: tuple[str, ...]  # names of the text encoders in the pipeline

    def __init__(
        self, facts: Facts, pipe: DiffusionPipeline, objective: Objective, name: str, clip_skip: int | None = None,
        dtype: torch.dtype | None = None,
    ):  # fmt: skip
        self.facts, self.pipe, self.objective, self.name, self.clip_skip = facts, pipe, objective, name, clip_skip
        self.denoiser = pipe.unet.requires_grad_(False).eval()
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

    def normalise(self, latents: Tensor) -> Tensor:
        return latents * self.vae.config.scaling_factor

    def denormalise(self, latents: Tensor) -> Tensor:
        return latents / self.vae.config.scaling_factor

    def fingerprint(self) -> str:
        modules = (self.denoiser, self.pipe.vae, *(getattr(self.pipe, name) for name in self.encoders))
        return fingerprint(*(module for module in modules if module is not None))  # a random SDXL has no encoders

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

    def _warn_if_cut(self, prompt: str) -> None:
        limit = self.pipe.tokenizer.model_max_length
        length = len(self.pipe.tokenizer(prompt, truncation=False).input_ids)
        if length > limit:
            print(
                f"note: the prompt {prompt[:40]!r}… has {length} tokens, but the model reads only the first {limit}: shorten it."
            )

    def negative(self, prompt: str, embeds: dict[str, PromptEmbeds]) -> PromptEmbeds:
        return embeds[prompt]

    def free_text_encoders(self) -> None:
        for name in self.encoders:
            setattr(self.pipe, name, None)

    def check_sampling(self, place: str, remedy: str | None) -> None:
        check_scheduler(self.scheduler, place, remedy)

    def use_sampler(self, name: str) -> None:
        self.scheduler = as_sampler(self.scheduler, name)

    def _prompt_inputs(self, prompts: Sequence[PromptEmbeds], negative: PromptEmbeds) -> dict[str, Tensor]:
        """The pipeline's inputs for these prompts, one per row."""
        return {
            "prompt_embeds": torch.stack([p.tokens for p in prompts]),
            "negative_prompt_embeds": negative.tokens.expand(len(prompts), -1, -1),
        }

    @torch.no_grad()
    def sample_latents(
        self, prompts: Sequence[PromptEmbeds], negative: PromptEmbeds, noise: Tensor, generators: list[torch.Generator],
        steps: int, guidance: float, after_step: AfterStep,
    ) -> Tensor:  # fmt: skip
        def callback(pipe, step: int, timestep: int, kwargs: dict) -> dict:
            after_step(step + 1)
            return kwargs

        factor = self.facts.latent_factor
        return self.pipe(
            **self._prompt_inputs(prompts, negative),
            latents=noise.to(self.denoiser.device, self.denoiser.dtype),
            generator=generators,  # for samplers that add noise
            height=noise.shape[2] * factor,
            width=noise.shape[3] * factor,
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="latent",
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=[],
        ).images
