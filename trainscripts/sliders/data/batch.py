"""A draw becomes the tensors of one step. Rows come in pairs: the lower scale, then the higher."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sliders.config.schema import PromptSet
from sliders.data.draws import PairDraw, StepDraw
from sliders.data.latents import EncodedImage, LatentCache, View
from sliders.models.base import Conditioning, Geometry, Model, PromptEmbeds

Row = tuple[Tensor, Tensor, Tensor, Geometry]  # latents, source, noise, geometry


@dataclass(frozen=True)
class Batch:
    """One optimizer step's rows, B = 2 · pairs. Both rows of a pair share noise, timestep and crop."""

    latents: Tensor  # [B, c, h, w] float32, scaled by the VAE's factor: the image of the row's scale
    sources: Tensor  # the same shape: the image of a third scale, the same for both rows of a pair
    noise: Tensor  # [B, c, h, w] float32
    timesteps: Tensor  # [B] int64; noises the latents and conditions the denoiser
    scales: Tensor  # [B] float32: the multiplier of each row
    conditioning: Conditioning  # neutral prompt for the lower scale, positive for the higher

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, always in the same order."""
        own = (getattr(self, f.name) for f in fields(self) if f.name != "conditioning")
        return (*own, *self.conditioning.values())

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with `function` applied to every tensor."""
        own = {f.name: function(getattr(self, f.name)) for f in fields(self) if f.name != "conditioning"}
        return Batch(**own, conditioning={key: function(value) for key, value in self.conditioning.items()})


@dataclass(frozen=True)
class BatchMaker:
    """`maker(draw)` returns the `Batch` on `device`. `prompt_embeds` holds every prompt of `prompts`, on that device."""

    model: Model
    cache: LatentCache
    prompts: tuple[PromptSet, ...]
    prompt_embeds: dict[str, PromptEmbeds]
    scales: tuple[float, ...]
    device: str

    def __call__(self, draw: StepDraw) -> Batch:
        chosen = self.prompts[draw.prompt]
        view = View(draw.resolution, chosen.dynamic_crops)
        rows = [row for pair in draw.pairs for row in self._rows(pair, self.cache[pair.name, view])]
        latents, sources, noise, geometry = zip(*rows, strict=True)
        embeds = [self.prompt_embeds[chosen.neutral], self.prompt_embeds[chosen.positive]] * len(draw.pairs)
        batch = Batch(
            latents=torch.stack(latents),
            sources=torch.stack(sources),
            noise=torch.stack(noise),
            timesteps=torch.tensor([pair.timestep for pair in draw.pairs for _ in range(2)]),
            scales=torch.tensor([self.scales[i] for pair in draw.pairs for i in (pair.low, pair.high)]),
            conditioning=self.model.conditioning(embeds, geometry),
        )
        return batch.map(self._move)

    def _rows(self, pair: PairDraw, image: EncodedImage) -> list[Row]:
        """The rows of the lower and of the higher scale.

        One draw of the posterior serves all of a pair's images: where they are equal, so are their latents.
        """
        generator = torch.Generator().manual_seed(pair.noise_seed)
        window, geometry = image.crop(pair.crop)
        shape = image.mean[0][window].shape
        noise, deviation = (torch.randn(shape, generator=generator) for _ in range(2))
        low, high, source = (
            (image.mean[scale][window] + image.std[scale][window] * deviation) * self.cache.scaling_factor
            for scale in (pair.low, pair.high, pair.source)
        )
        return [(low, source, noise, geometry), (high, source, noise, geometry)]

    def _move(self, tensor: Tensor) -> Tensor:
        """To the device without waiting for it: only a copy from pinned memory is asynchronous."""
        if self.device.startswith("cuda") and tensor.device.type == "cpu":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)
