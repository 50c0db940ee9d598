"""A loaded SDXL model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sliders.models.base import Conditioning, Geometry, PromptEmbeds
from sliders.models.diffusers_unet.model import UNetModel


class SDXL(UNetModel):
    """A prompt's tokens are [77, 2048], both text encoders' concatenated, and its pooled embedding [1280]."""

    encoders = ("text_encoder", "text_encoder_2")
    in_calls = {"prompt_embeds": "prompt_embeds", "pooled_prompt_embeds": "add_text_embeds"}  # noqa: RUF012

    def _encode(self, prompt: str, device: torch.device) -> PromptEmbeds:
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            prompt, device=device, do_classifier_free_guidance=False, clip_skip=self.clip_skip
        )
        return PromptEmbeds(tokens[0], pooled[0])

    def negative(self, prompt: str, embeds: dict[str, PromptEmbeds]) -> PromptEmbeds:
        """`embeds[prompt]`, or, as in web UIs, zeros for an empty prompt if the pipeline says so, as SDXL-base's does."""
        found = embeds[prompt]
        if prompt or not self.pipe.config.force_zeros_for_empty_prompt:
            return found
        return PromptEmbeds(torch.zeros_like(found.tokens), torch.zeros_like(found.pooled))

    def conditioning(self, prompts: Sequence[PromptEmbeds], images: Sequence[Geometry]) -> Conditioning:
        time_ids = [(*image.original, *image.crop, *image.target) for image in images]
        return {
            "tokens": torch.stack([p.tokens for p in prompts]),  # [B, 77, 2048]
            "pooled": torch.stack([p.pooled for p in prompts]),  # [B, 1280]
            "time_ids": torch.tensor(time_ids, dtype=torch.float32),  # [B, 6]
        }

    def denoise(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.denoiser(
            noisy.to(self.denoiser.dtype),
            timesteps,
            encoder_hidden_states=conditioning["tokens"],
            added_cond_kwargs={"text_embeds": conditioning["pooled"], "time_ids": conditioning["time_ids"]},
            return_dict=False,
        )[0].float()

    def _prompt_inputs(self, prompts: Sequence[PromptEmbeds], negative: PromptEmbeds) -> dict[str, Tensor]:
        return {
            **super()._prompt_inputs(prompts, negative),
            "pooled_prompt_embeds": torch.stack([p.pooled for p in prompts]),
            "negative_pooled_prompt_embeds": negative.pooled.expand(len(prompts), -1),
        }
