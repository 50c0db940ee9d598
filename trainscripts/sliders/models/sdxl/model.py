"""A loaded SDXL model."""

from collections.abc import Sequence

import torch
from diffusers import SchedulerMixin, StableDiffusionXLPipeline
from torch import Tensor, nn

from sliders.compute.device import place
from sliders.models.base import AfterStep, Conditioning, Facts, Geometry, Model, PromptEmbeds, fingerprint
from sliders.models.schedule import NoiseSchedule

SDXL_FACTS = Facts(
    title="SDXL",
    webui_version="SDXL",
    size_multiple=32,  # 8 for the VAE times 4 for the UNet's two downsamplings
    latent_factor=8,
    latent_channels=4,
    default_size=1024,
)


class SDXL(Model):
    """Implements `Model` with a diffusers pipeline, `pipe`.

    name: the model as the user wrote it. clip_skip: text-encoder layers to skip, counted back from the usual one. dtype:
    the UNet's, unless it is still to be converted to another. A prompt's tokens are [77, 2048], both text encoders'
    concatenated, and its pooled embedding [1280].
    """

    facts = SDXL_FACTS

    def __init__(
        self, pipe: StableDiffusionXLPipeline, schedule: NoiseSchedule, name: str, clip_skip: int | None = None,
        dtype: torch.dtype | None = None,
    ):  # fmt: skip
        self.pipe, self.schedule, self.name, self.clip_skip = pipe, schedule, name, clip_skip
        self.unet = pipe.unet.requires_grad_(False).eval()
        self.dtype = dtype or self.unet.dtype
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

    @property
    def scaling_factor(self) -> float:
        return self.pipe.vae.config.scaling_factor

    def fingerprint(self) -> str:
        pipe = self.pipe
        modules = (self.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
        return fingerprint(*(module for module in modules if module is not None))  # a random SDXL has no encoders

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], device: str) -> dict[str, PromptEmbeds]:
        pipe = self.pipe
        for encoder in (pipe.text_encoder, pipe.text_encoder_2):
            place(encoder, device, self.dtype)
        found = {}
        for prompt in dict.fromkeys(prompts):
            self._warn_if_cut(prompt)
            tokens, _, pooled, _ = pipe.encode_prompt(
                prompt, device=torch.device(device), do_classifier_free_guidance=False, clip_skip=self.clip_skip
            )
            found[prompt] = PromptEmbeds(tokens[0], pooled[0])
        return found

    def negative(self, prompt: str, embeds: dict[str, PromptEmbeds]) -> PromptEmbeds:
        """`embeds[prompt]`, or, as in web UIs, zeros for an empty prompt if the pipeline says so, as SDXL-base's does."""
        found = embeds[prompt]
        if prompt or not self.pipe.config.force_zeros_for_empty_prompt:
            return found
        return PromptEmbeds(torch.zeros_like(found.tokens), torch.zeros_like(found.pooled))

    def _warn_if_cut(self, prompt: str) -> None:
        limit = self.pipe.tokenizer.model_max_length
        length = len(self.pipe.tokenizer(prompt, truncation=False).input_ids)
        if length > limit:
            print(
                f"note: the prompt {prompt[:40]!r}… has {length} tokens, but the model reads only the first {limit}: shorten it."
            )

    def free_text_encoders(self) -> None:
        self.pipe.text_encoder = self.pipe.text_encoder_2 = None

    def conditioning(self, prompts: Sequence[PromptEmbeds], images: Sequence[Geometry]) -> Conditioning:
        time_ids = [(*image.original, *image.crop, *image.target) for image in images]
        return {
            "tokens": torch.stack([p.tokens for p in prompts]),  # [B, 77, 2048]
            "pooled": torch.stack([p.pooled for p in prompts]),  # [B, 1280]
            "time_ids": torch.tensor(time_ids, dtype=torch.float32),  # [B, 6]
        }

    def denoise(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.unet(
            noisy.to(self.unet.dtype),
            timesteps,
            encoder_hidden_states=conditioning["tokens"],
            added_cond_kwargs={"text_embeds": conditioning["pooled"], "time_ids": conditioning["time_ids"]},
            return_dict=False,
        )[0].float()

    @torch.no_grad()
    def sample_latents(
        self, prompts: Sequence[PromptEmbeds], negative: PromptEmbeds, noise: Tensor, generators: list[torch.Generator],
        steps: int, guidance: float, after_step: AfterStep,
    ) -> Tensor:  # fmt: skip
        def callback(pipe, step: int, timestep: int, kwargs: dict) -> dict:
            after_step(step + 1)
            return kwargs

        rows, factor = len(prompts), self.facts.latent_factor
        return self.pipe(
            prompt_embeds=torch.stack([p.tokens for p in prompts]),
            pooled_prompt_embeds=torch.stack([p.pooled for p in prompts]),
            negative_prompt_embeds=negative.tokens.expand(rows, -1, -1),
            negative_pooled_prompt_embeds=negative.pooled.expand(rows, -1),
            latents=noise.to(self.unet.device, self.unet.dtype),
            generator=generators,  # for samplers that add noise
            height=noise.shape[2] * factor,
            width=noise.shape[3] * factor,
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="latent",
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=[],
        ).images
