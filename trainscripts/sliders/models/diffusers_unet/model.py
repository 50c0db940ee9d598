"""A loaded diffusers pipeline with a UNet, as a `Model`."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from sliders.config.families import Facts
from sliders.models.base import AfterStep, PromptEmbeds
from sliders.models.diffusers_unet.samplers import as_sampler, check_scheduler
from sliders.models.objective import Objective
from sliders.models.pipeline import PipelineModel


class UNetModel(PipelineModel):
    """Implements what pipelines with a UNet share. Subclasses know what the denoiser is conditioned on.

    clip_skip: text-encoder layers to skip, counted back from the usual one. The rest: as for `PipelineModel`.
    """

    part = "unet"
    in_calls: ClassVar[Mapping[str, str]] = {
        "prompt_embeds": "prompt_embeds"
    }  # {input of the pipeline: name in its loop}

    def __init__(
        self, facts: Facts, pipe: DiffusionPipeline, objective: Objective, name: str, clip_skip: int | None = None,
        dtype: torch.dtype | None = None,
    ):  # fmt: skip
        super().__init__(facts, pipe, objective, name, dtype)
        self.clip_skip = clip_skip

    def normalise(self, latents: Tensor) -> Tensor:
        return latents * self.vae.config.scaling_factor

    def denormalise(self, latents: Tensor) -> Tensor:
        return latents / self.vae.config.scaling_factor

    def _length(self, prompt: str) -> tuple[int, int]:
        tokenizer = self.pipe.tokenizer
        return len(tokenizer(prompt, truncation=False).input_ids), tokenizer.model_max_length

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

    def _in_calls(self, inputs: dict[str, Tensor], guidance: float) -> dict[str, Tensor]:
        """`_prompt_inputs` as the pipeline's loop passes them on: with guidance, those of the negative prompt come first."""
        device, dtype, guided = self.denoiser.device, self.denoiser.dtype, self.rows_at_once(guidance) > 1
        both = {name: [inputs[f"negative_{name}"]] * guided + [inputs[name]] for name in self.in_calls}
        return {self.in_calls[name]: torch.cat(parts).to(device, dtype) for name, parts in both.items()}

    def rows_at_once(self, guidance: float) -> int:
        return 2 if guidance > 1 else 1

    @torch.no_grad()
    def sample_latents(
        self, prompts: Sequence[PromptEmbeds], negative: PromptEmbeds, noise: Tensor, generators: list[torch.Generator],
        steps: int, guidance: float, after_step: AfterStep,
    ) -> Tensor:  # fmt: skip
        def callback(pipe, step: int, timestep: int, kwargs: dict) -> dict:
            later = after_step(step + 1)
            return kwargs if later is None else self._in_calls(self._prompt_inputs(later, negative), guidance)

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
