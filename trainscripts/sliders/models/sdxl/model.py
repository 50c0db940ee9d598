"""A loaded SDXL model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sliders.models.base import Conditioning, Facts, Geometry, PromptEmbeds
from sliders.models.diffusers_unet import kinds
from sliders.models.diffusers_unet.model import PipelineModel

SDXL_FACTS = Facts(
    title=kinds.SDXL.title,
    example=kinds.SDXL.example,
    webui_version="SDXL",
    webui_clip_skip=2,
    size_multiple=32,  # 8 for the VAE times 4 for the UNet's two downsamplings
    latent_factor=8,
    latent_channels=4,
    default_size=1024,
)


class SDXL(PipelineModel):
    """A prompt's tokens are [77, 2048], both text encoders' concatenated, and its pooled embedding [1280]."""

    facts = SDXL_FACTS
    encoders = ("text_encoder", "text_encoder_2")

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
        return self.unet(
            noisy.to(self.unet.dtype),
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
