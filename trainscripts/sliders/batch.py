"""A draw → the tensors of one step. Rows come in pairs: the lower scale, then the higher."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sliders.latents import EncodedImage, LatentCache, View
from sliders.models.sdxl import LATENT_FACTOR, PromptEmbeds
from sliders.samplers import PairDraw, StepDraw
from sliders.schema import PromptSet


@dataclass(frozen=True)
class Batch:
    """One optimizer step's rows, B = 2 · pairs. Both rows of a pair share noise, timestep and crop."""

    latents: Tensor  # [B, 4, h, w] float32, scaled by the VAE's factor: the image of the row's scale
    sources: Tensor  # the same shape: the image of a third scale, one for both rows of a pair, or of one of the two
    noise: Tensor  # [B, 4, h, w] float32
    timesteps: Tensor  # [B] int64; noises the latents and conditions the UNet
    scales: Tensor  # [B] float32: the multiplier of each row
    tokens: Tensor  # [B, 77, 2048]: neutral prompt for the lower scale, positive for the higher
    pooled: Tensor  # [B, 1280]
    time_ids: Tensor  # [B, 6] float32


@dataclass(frozen=True)
class BatchMaker:
    """`maker(draw)` → `Batch` on `device`. `prompt_embeds` holds every prompt of `prompts`, on that device already."""

    cache: LatentCache
    prompts: tuple[PromptSet, ...]
    prompt_embeds: dict[str, PromptEmbeds]
    scales: tuple[float, ...]
    device: str

    def __call__(self, draw: StepDraw) -> Batch:
        chosen = self.prompts[draw.prompt]
        view = View(draw.resolution, chosen.dynamic_crops)
        rows = [row for pair in draw.pairs for row in self._rows(pair, self.cache[pair.name, view])]
        latents, sources, noise, time_ids = (torch.stack(column) for column in zip(*rows, strict=True))
        timesteps = torch.tensor([pair.timestep for pair in draw.pairs for _ in range(2)])
        scales = torch.tensor([self.scales[i] for pair in draw.pairs for i in (pair.low, pair.high)])
        embeds = [self.prompt_embeds[chosen.neutral], self.prompt_embeds[chosen.positive]] * len(draw.pairs)
        return Batch(
            latents=self._move(latents),
            sources=self._move(sources),
            noise=self._move(noise),
            timesteps=self._move(timesteps),
            scales=self._move(scales),
            tokens=torch.stack([e.tokens for e in embeds]),
            pooled=torch.stack([e.pooled for e in embeds]),
            time_ids=self._move(time_ids),
        )

    def _rows(self, pair: PairDraw, image: EncodedImage) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(latents, source, noise, time ids) of the lower and of the higher scale.

        One draw of the posteriors serves all of a pair's images: where they are the same, so are their latents.
        """
        generator = torch.Generator().manual_seed(pair.noise_seed)
        height, width = (side // LATENT_FACTOR for side in image.target)
        top, left = image.crop_offset(pair.crop)
        window = (slice(None), slice(top, top + height), slice(left, left + width))
        noise = torch.randn((image.mean.shape[1], height, width), generator=generator)
        corner = (image.crop[0] + top * LATENT_FACTOR, image.crop[1] + left * LATENT_FACTOR)
        time_ids = torch.tensor([*image.original, *corner, *image.target], dtype=torch.float32)
        deviation = torch.randn(noise.shape, generator=generator)
        low, high, source = (
            (image.mean[scale][window] + image.std[scale][window] * deviation) * self.cache.scaling_factor
            for scale in (pair.low, pair.high, pair.source)
        )
        return [(low, source, noise, time_ids), (high, source, noise, time_ids)]

    def _move(self, tensor: Tensor) -> Tensor:
        """To the device without waiting for it: only a copy from pinned memory is asynchronous."""
        if self.device.startswith("cuda"):
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)
