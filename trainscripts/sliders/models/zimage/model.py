"""A loaded Z-Image model."""

from collections.abc import Sequence

import torch
from diffusers import ZImagePipeline
from torch import Tensor
from torch.nn import functional as F

from sliders.config.families import Facts
from sliders.models.base import AfterStep, Conditioning, Geometry, PromptEmbeds
from sliders.models.flow.model import TEXT_LENGTH, FlowModel
from sliders.models.flow.text_encoder import StoredEncoder
from sliders.models.zimage.kind import is_turbo
from sliders.models.zimage.transformer import MULTIPLE, stacked
from sliders.system.errors import InputError


class ZImage(FlowModel):
    """A prompt's tokens are [n, 2560], of the length that it has: the last state of Qwen3 but one."""

    thinking = True

    def __init__(
        self, facts: Facts, pipe: ZImagePipeline, name: str, dtype: torch.dtype | None = None,
        stored: StoredEncoder | None = None,
    ):  # fmt: skip
        pipe.transformer = stacked(pipe.transformer)
        super().__init__(facts, pipe, name, dtype, stored)

    @property
    def distilled(self) -> bool:
        return is_turbo(self.name, self.scheduler.config.get("shift"))

    def normalise(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        return (latents - config.shift_factor) * config.scaling_factor

    def denormalise(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        return latents / config.scaling_factor + config.shift_factor

    def _encode(self, prompt: str, device: torch.device) -> PromptEmbeds:
        options = {"do_classifier_free_guidance": False, "max_sequence_length": TEXT_LENGTH}
        (tokens,), _ = self.pipe.encode_prompt([prompt], device=device, **options)
        return PromptEmbeds(tokens)

    def conditioning(self, prompts: Sequence[PromptEmbeds], images: Sequence[Geometry]) -> Conditioning:
        """The transformer's inputs, with `attended` only where rows differ in their padded length, and need a mask."""
        lengths = torch.tensor([len(p.tokens) for p in prompts])
        padded = -(-lengths // MULTIPLE) * MULTIPLE
        longest = int(padded.max())
        tokens = [F.pad(p.tokens, (0, 0, 0, longest - len(p.tokens))) for p in prompts]
        places = torch.arange(longest)
        found = {"tokens": torch.stack(tokens), "of_prompt": places < lengths[:, None]}
        return found | ({"attended": places < padded[:, None]} if (padded < longest).any() else {})

    def denoise(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self._velocity(noisy, self.objective.alphas[timesteps], conditioning)

    def _velocity(self, noisy: Tensor, alpha: Tensor, conditioning: Conditioning) -> Tensor:
        """ε − x₀ [B, c, h, w] float32. alpha [B]: the share of the image, which the model's time is; its output is negative."""
        (found,) = self.denoiser(noisy.to(self.denoiser.dtype), alpha, **conditioning)
        return -found.float()

    def check_sampling(self, place: str, remedy: str | None) -> None:
        super().check_sampling(place, remedy)
        if self.scheduler.config.use_dynamic_shifting:
            raise InputError(
                f"{place}: the model's scheduler has use_dynamic_shifting, but {self.facts.title}'s shift is the same for all sizes: "
                f"choose {self.facts.title}."
            )

    def rows_at_once(self, guidance: float) -> int:
        return 2 if guidance > 1 and not self.distilled else 1

    @torch.no_grad()
    def sample_latents(
        self, prompts: Sequence[PromptEmbeds], negative: PromptEmbeds, noise: Tensor, generators: list[torch.Generator],
        steps: int, guidance: float, after_step: AfterStep,
    ) -> Tensor:  # fmt: skip
        """As diffusers' pipeline does, whose guidance scale is `guidance` − 1."""
        parts, device, scheduler = self.rows_at_once(guidance), self.denoiser.device, self.scheduler
        without = [negative] * (len(prompts) * (parts - 1))

        def read(prompts: Sequence[PromptEmbeds]) -> Conditioning:
            return {key: value.to(device) for key, value in self.conditioning([*without, *prompts], []).items()}

        conditioning = read(prompts)
        latents = noise.to(device)
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), device=device)
        scheduler.set_begin_index(0)
        for step, timestep in enumerate(scheduler.timesteps):
            alpha = ((1000 - timestep) / 1000).expand(len(prompts) * parts)
            *base, prompted = self._velocity(latents.repeat(parts, 1, 1, 1), alpha, conditioning).chunk(parts)
            velocity = base[0] + guidance * (prompted - base[0]) if base else prompted
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            if (later := after_step(step + 1)) is not None:
                conditioning = read(later)
        return latents
