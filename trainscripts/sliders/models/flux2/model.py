"""A loaded FLUX.2 [klein] model."""

from collections.abc import Sequence

import torch
from diffusers import Flux2KleinPipeline
from PIL import Image
from torch import Tensor

from sliders.config.families import Facts
from sliders.models.base import AfterStep, Conditioning, Geometry, PromptEmbeds, to_picture
from sliders.models.flow.model import TEXT_LENGTH, FlowModel
from sliders.models.flow.text_encoder import StoredEncoder
from sliders.models.flux2.architecture import join_projections
from sliders.models.flux2.kind import is_distilled
from sliders.models.flux2.latents import image_places, patched, text_places, to_maps, to_tokens, unpatched


class Klein(FlowModel):
    """A prompt's tokens are [512, 7680]: the states of Qwen3 after layers 9, 18 and 27, of padding too, which the transformer
    reads as well. Latents are patches of the VAE's.
    """

    thinking = False

    def __init__(
        self, facts: Facts, pipe: Flux2KleinPipeline, name: str, dtype: torch.dtype | None = None,
        stored: StoredEncoder | None = None,
    ):  # fmt: skip
        join_projections(pipe.transformer)
        super().__init__(facts, pipe, name, dtype, stored)
        self._distilled = pipe.config.is_distilled or is_distilled(name)

    @property
    def distilled(self) -> bool:
        return self._distilled

    @torch.no_grad()
    def encode_image(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        mode, deviation = patched(torch.stack(super().encode_image(image)))
        return mode, deviation

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        latents = unpatched(self.denormalise(latents[None].to(self.vae.device, self.vae.dtype)))
        return to_picture(self.vae.decode(latents, return_dict=False)[0][0])

    def normalise(self, latents: Tensor) -> Tensor:
        mean, deviation = self._statistics(latents)
        return (latents - mean) / deviation

    def denormalise(self, latents: Tensor) -> Tensor:
        mean, deviation = self._statistics(latents)
        return latents * deviation + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of patches, [C, 1, 1], which the VAE keeps but does not apply."""
        norm = self.vae.bn
        deviation = (norm.running_var + self.vae.config.batch_norm_eps).sqrt()
        return tuple(values.view(-1, 1, 1).to(like) for values in (norm.running_mean, deviation))

    def _encode(self, prompt: str, device: torch.device) -> PromptEmbeds:
        tokens, _ = self.pipe.encode_prompt(prompt, device=device, max_sequence_length=TEXT_LENGTH)
        return PromptEmbeds(tokens[0])

    def conditioning(self, prompts: Sequence[PromptEmbeds], images: Sequence[Geometry]) -> Conditioning:
        return {"tokens": torch.stack([p.tokens for p in prompts])}  # [B, 512, 7680]

    def denoise(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        text, size, device = conditioning["tokens"], noisy.shape[2:], noisy.device
        velocity = self.denoiser(
            hidden_states=to_tokens(noisy).to(self.denoiser.dtype),
            encoder_hidden_states=text,
            timestep=self.objective.sigmas[timesteps],  # the model itself multiplies them by 1000
            img_ids=image_places(size, device),
            txt_ids=text_places(text.shape[1], device),
            return_dict=False,
        )[0]
        return to_maps(velocity, size).float()

    def rows_at_once(self, guidance: float) -> int:
        """1: the pipeline asks about the negative prompt in a call of its own."""
        return 1

    @torch.no_grad()
    def sample_latents(
        self, prompts: Sequence[PromptEmbeds], negative: PromptEmbeds, noise: Tensor, generators: list[torch.Generator],
        steps: int, guidance: float, after_step: AfterStep,
    ) -> Tensor:  # fmt: skip
        found: Tensor | None = None  # tokens [B, n, C], still normalised, unlike what the pipeline returns

        def callback(pipe, step: int, timestep: Tensor, kwargs: dict) -> dict:
            nonlocal found
            found = kwargs["latents"]
            later = after_step(step + 1)
            return kwargs if later is None else {"prompt_embeds": torch.stack([p.tokens for p in later])}

        height, width = noise.shape[2:]
        self.pipe(
            prompt_embeds=torch.stack([p.tokens for p in prompts]),
            negative_prompt_embeds=negative.tokens.expand(len(prompts), -1, -1),
            latents=noise.to(self.denoiser.device, self.denoiser.dtype),
            height=height * self.facts.latent_factor,
            width=width * self.facts.latent_factor,
            num_inference_steps=steps,
            guidance_scale=1.0 if self.distilled else guidance,
            output_type="latent",
            callback_on_step_end=callback,
        )
        return to_maps(found, (height, width))
