"""What a text slider trains on: a range of multipliers, and latents that the adapted model itself makes from noise."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass

from sliders.adaptors.network import AdaptorNetwork
from sliders.config.prompts import PromptSet, TextPromptSet
from sliders.data.contract import Batch, Checked, moved
from sliders.data.draws import StepDraw, TextRowDraw
from sliders.models.base import Conditioning, Geometry, Model, PromptEmbeds

GUIDANCE = 3.0  # at which latents are made, as in Concept Sliders
CROPS_OF = 3.0  # dynamic_crops: the picture that a crop is said to be from is at most this many times as large


@dataclass(frozen=True)
class MultiplierRange(Checked):
    """All multipliers from the first to the last of `scales`, which are ascending."""

    scales: tuple[float, ...]

    def fitted_size(self, image: int, resolution: int) -> tuple[int, int]:
        return resolution, resolution

    def fitted_sizes(self, resolution: int) -> list[tuple[int, int]]:
        return [(resolution, resolution)]

    def place(self, row: TextRowDraw) -> str:
        return f"multiplier {row.scale:.2f}, timestep {row.timestep}"

    def identity(self) -> dict:
        return {"scales": self.scales}

    def metadata(self, prompts: tuple[PromptSet, ...]) -> dict[str, str | dict | list]:
        return {"sliders.scales": list(self.scales)}

    def describe(self, prompts: tuple[TextPromptSet, ...], whole: bool = False) -> list[str]:
        lines = [f"range   multipliers {self.scales[0]:g} to {self.scales[-1]:g}, without images", ""]
        for chosen in prompts:
            lines.append(
                f"under {chosen.target!r}, multiplier 1 is {chosen.neutral!r} {chosen.strength:+g} · "
                f"({chosen.positive!r} − {chosen.unconditional!r})"
            )
        return lines

    def remarks(self, prompts: tuple[TextPromptSet, ...]) -> list[str]:
        return []


@dataclass(frozen=True)
class TextBatch(Batch):
    """Partly denoised latents, and what the frozen model is asked about them."""

    noisy: Tensor  # [B, …] float32
    strength: Tensor  # [B] float32: `TextPromptSet.strength`
    frozen: Conditioning  # [3 B, …]: under `positive`, then `unconditional`, then `neutral`


register_dataclass(TextBatch)


@dataclass(frozen=True)
class TextBatchMaker:
    """`maker(draw)` returns the `TextBatch` on `device`.

    The latents are made outside of the loss: however many denoising steps they take, the step that follows is the same,
    and can be captured as a graph. path: timesteps of the denoising, noisiest first. prompt_embeds: of all prompts and
    of "", on that device.
    """

    model: Model
    network: AdaptorNetwork
    prompts: tuple[TextPromptSet, ...]
    prompt_embeds: dict[str, PromptEmbeds]
    path: tuple[int, ...]
    device: str

    def __call__(self, draw: StepDraw) -> TextBatch:
        chosen, rows = self.prompts[draw.prompt], draw.rows
        geometry = [_geometry(draw.resolution, row.crop if chosen.dynamic_crops else None) for row in rows]

        def under(*prompts: PromptEmbeds) -> Conditioning:
            """Of all rows with the first, then all rows with the second, …: together, because prompts differ in length."""
            return self.model.conditioning([p for p in prompts for _ in rows], geometry * len(prompts))

        embeds, target = self.prompt_embeds, self.prompt_embeds[chosen.target]
        asked = (target,) if self.model.distilled else (self.model.negative("", embeds), target)
        batch = TextBatch(
            timesteps=torch.tensor([row.timestep for row in rows]),
            scales=torch.tensor([row.scale for row in rows]),
            conditioning=under(target),
            noisy=torch.stack([self._noise(row, draw.resolution) for row in rows]),
            strength=torch.full((len(rows),), chosen.strength),
            frozen=under(embeds[chosen.positive], embeds[chosen.unconditional], embeds[chosen.neutral]),
        ).to(self.device)
        guided = {key: moved(value, self.device) for key, value in under(*asked).items()}
        self._denoise(batch, guided, rows)
        return batch

    def _noise(self, row: TextRowDraw, resolution: int) -> Tensor:
        generator = torch.Generator().manual_seed(row.noise_seed)
        return torch.randn(self.model.facts.latent_shape(resolution, resolution), generator=generator)

    @torch.no_grad()
    def _denoise(self, batch: TextBatch, guided: Conditioning, rows: tuple[TextRowDraw, ...]) -> None:
        """Denoises `batch.noisy` in place, each row at its multiplier under `target` until its timestep.

        With the deterministic DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12 with σ = 0). guided: the conditioning of all
        rows with the negative prompt, then of all with `target`; of a distilled model, which needs no guidance, the latter.
        """
        objective, parts = self.model.objective, 1 if self.model.distilled else 2
        for now, after in pairwise(self.path):
            left = sum(row.timestep < now for row in rows)  # these come first
            if not left:
                return
            noisy = batch.noisy[:left]
            here, there = (torch.full((left,), t, device=noisy.device) for t in (now, after))
            conditioning = {k: torch.cat([part[:left] for part in v.chunk(parts)]) for k, v in guided.items()}
            self.network.set_multipliers(batch.scales[:left].repeat(parts))
            found = self.model.denoise(torch.cat([noisy] * parts), here.repeat(parts), conditioning)
            *without, prompted = found.chunk(parts)
            prediction = without[0] + GUIDANCE * (prompted - without[0]) if without else prompted
            image, noise = objective.image(noisy, prediction, here), objective.noise(noisy, prediction, here)
            batch.noisy[:left] = objective.add_noise(image, noise, there)


def _geometry(side: int, crop: tuple[float, float, float] | None) -> Geometry:
    """A whole picture of side × side px, or a crop of that size from a larger one."""
    if crop is None:
        return Geometry((side, side), (0, 0), (side, side))
    size, *place = crop
    whole = int(side * (1 + (CROPS_OF - 1) * size))
    top, left = (math.floor(p * (whole - side + 1)) for p in place)
    return Geometry((whole, whole), (top, left), (side, side))
