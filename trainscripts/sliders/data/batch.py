"""A draw becomes the tensors of one step."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass, tree_map

from sliders.config.prompts import PromptSet
from sliders.data.draws import RowDraw, StepDraw
from sliders.data.latents import EncodedImage, LatentCache, View
from sliders.models.base import Conditioning, Geometry, Model, PromptEmbeds


@dataclass(frozen=True)
class Batch:
    """The B rows of one optimizer step. What else a loss needs is in the subclass of its source."""

    timesteps: Tensor  # [B] int64; conditions the denoiser, and is how noisy the latents it gets are
    scales: Tensor  # [B] float32: the multiplier of each row
    conditioning: Conditioning  # of the adapted model

    def to(self, device: str) -> Self:
        """The batch on the device."""
        return tree_map(lambda tensor: moved(tensor, device), self)


def moved(tensor: Tensor, device: str) -> Tensor:
    """To the device without waiting for it: only a copy from pinned memory is asynchronous."""
    if device.startswith("cuda") and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class ImageBatch(Batch):
    """Images, to be noised."""

    latents: Tensor  # [B, …] float32, normalised: the image of the row's scale
    noise: Tensor  # [B, …] float32


register_dataclass(ImageBatch)


def prompts_to_encode(prompts: tuple[PromptSet, ...], captions: tuple[str, ...]) -> list[str]:
    """Every text that a row may be read with, each once; the empty one, for caption dropout, among them."""
    texts = [text for chosen in prompts for caption in captions or ("",) for text in chosen.texts(caption)]
    return list(dict.fromkeys([*texts, ""]))


@dataclass(frozen=True)
class BatchMaker:
    """`maker(draw)` returns the `ImageBatch` on `device`. `prompt_embeds`: of all `prompts_to_encode`, on that device."""

    model: Model
    cache: LatentCache
    prompts: tuple[PromptSet, ...]
    captions: tuple[str, ...]  # of each image name, or none at all
    prompt_embeds: dict[str, PromptEmbeds]
    scales: tuple[float, ...]
    device: str

    def __call__(self, draw: StepDraw) -> ImageBatch:
        chosen = self.prompts[draw.prompt]
        view = View(draw.resolution, chosen.dynamic_crops)
        rows = [self._row(row, self.cache[row.name, view]) for row in draw.rows]
        latents, noise, geometry = zip(*rows, strict=True)
        embeds = [self.prompt_embeds[self.text(chosen, row)] for row in draw.rows]
        batch = ImageBatch(
            latents=torch.stack(latents),
            noise=torch.stack(noise),
            timesteps=torch.tensor([row.timestep for row in draw.rows]),
            scales=torch.tensor([self.scales[row.scale] for row in draw.rows]),
            conditioning=self.model.conditioning(embeds, geometry),
        )
        return batch.to(self.device)

    def text(self, chosen: PromptSet, row: RowDraw) -> str:
        """The prompt that a row is read with."""
        if not row.captioned:
            return ""
        neutral, positive = chosen.texts(self.captions[row.name] if self.captions else "")
        return positive if row.positive else neutral

    def _row(self, row: RowDraw, image: EncodedImage) -> tuple[Tensor, Tensor, Geometry]:
        """(latents, noise, geometry). The latents are a sample of the VAE's posterior."""
        generator = torch.Generator().manual_seed(row.noise_seed)
        window, geometry = image.crop(row.crop)
        mean, std = (moments[row.scale][window] for moments in (image.mean, image.std))
        noise, deviation = (torch.randn(mean.shape, generator=generator) for _ in range(2))
        return self.model.normalise(mean + std * deviation), noise, geometry
