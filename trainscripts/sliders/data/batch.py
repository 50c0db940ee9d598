"""A draw becomes the tensors of one step."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass

from sliders.config.prompts import PromptSet
from sliders.data.contract import Batch
from sliders.data.draws import RowDraw, StepDraw
from sliders.data.latents import EncodedImage, LatentCache, View
from sliders.models.base import Geometry, Model, PromptEmbeds


@dataclass(frozen=True)
class ImageBatch(Batch):
    """Images, to be noised."""

    latents: Tensor  # [B, …] float32, normalised: the image of the row's scale
    noise: Tensor  # [B, …] float32


register_dataclass(ImageBatch)


@dataclass(frozen=True)
class BatchMaker:
    """`maker(draw)` returns the `ImageBatch` on `device`.

    texts: [prompt set][image name] → (neutral, positive). prompt_embeds: of these and of "", on that device.
    """

    model: Model
    cache: LatentCache
    prompts: tuple[PromptSet, ...]
    texts: list[list[tuple[str, str]]]
    prompt_embeds: dict[str, PromptEmbeds]
    device: str

    def __call__(self, draw: StepDraw) -> ImageBatch:
        chosen = self.prompts[draw.prompt]
        view = View(draw.resolution, chosen.dynamic_crops)
        rows = [self._row(row, self.cache[row.image, view]) for row in draw.rows]
        latents, noise, geometry = zip(*rows, strict=True)
        embeds = [self.prompt_embeds[self._text(draw.prompt, row)] for row in draw.rows]
        batch = ImageBatch(
            latents=torch.stack(latents),
            noise=torch.stack(noise),
            timesteps=torch.tensor([row.timestep for row in draw.rows]),
            scales=torch.tensor([row.scale for row in draw.rows]),
            conditioning=self.model.conditioning(embeds, geometry),
        )
        return batch.to(self.device)

    def _text(self, prompt: int, row: RowDraw) -> str:
        """The prompt that a row is read with."""
        return self.texts[prompt][row.image][row.positive] if row.captioned else ""

    def _row(self, row: RowDraw, image: EncodedImage) -> tuple[Tensor, Tensor, Geometry]:
        """(latents, noise, geometry). The latents are a sample of the VAE's posterior."""
        generator = torch.Generator().manual_seed(row.noise_seed)
        window, geometry = image.crop(row.crop)
        mean, std = (moments[row.folder][window] for moments in (image.mean, image.std))
        noise, deviation = (torch.randn(mean.shape, generator=generator) for _ in range(2))
        return self.model.normalise(mean + std * deviation), noise, geometry
