"""A loaded Stable Diffusion 1 or 2."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sliders.models.base import Conditioning, Geometry, PromptEmbeds
from sliders.models.diffusers_unet.model import UNetModel


class StableDiffusion(UNetModel):
    """A prompt's tokens are [77, 768], for SD 2 [77, 1024]. Nothing else conditions the denoiser."""

    encoders = ("text_encoder",)

    def _encode(self, prompt: str, device: torch.device) -> PromptEmbeds:
        """Not with the pipeline's method, whose clip_skip looks for a module that CLIPTextModel no longer has."""
        encoder, tokenizer = self.pipe.text_encoder, self.pipe.tokenizer
        ids = tokenizer(
            prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids
        layers = encoder(ids.to(device), output_hidden_states=True).hidden_states
        return PromptEmbeds(encoder.final_layer_norm(layers[-1 - (self.clip_skip or 0)])[0])

    def conditioning(self, prompts: Sequence[PromptEmbeds], images: Sequence[Geometry]) -> Conditioning:
        return {"tokens": torch.stack([p.tokens for p in prompts])}  # [B, 77, 768 or 1024]

    def denoise(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.denoiser(
            noisy.to(self.denoiser.dtype), timesteps, encoder_hidden_states=conditioning["tokens"], return_dict=False
        )[0].float()
