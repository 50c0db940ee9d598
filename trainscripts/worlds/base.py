"""What a world is: attributes with scale folders, captions to judge a slider by, and measures of the pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from sliders.sample.preview import preview_multipliers
from torch import Tensor


@dataclass(frozen=True)
class Attribute:
    """One row of a world's table: folders and scales in pairs, and what a measure should say at a scale."""

    folders: tuple[str, ...]
    scales: tuple[float, ...]
    at_scale: Callable[[float], float]  # the wanted value: linear in the scale, so it holds between and beyond them too
    unit: str

    @property
    def wanted(self) -> tuple[float, ...]:
        return tuple(self.at_scale(scale) for scale in self.scales)


class World(Protocol):
    """What measuring sliders asks of a world. Pictures are fp32 RGB in [0, 1] on the CPU."""

    image_size: int  # px
    attributes: Mapping[str, Attribute]
    columns: Mapping[str, str]  # of a curve, besides mean and spread: {name: format}; the first two are shown in tables
    in_readme: tuple[str, ...]  # the attributes that are compared unless others are asked for
    model: Path  # the diffusers folder of the world's SDXL

    def evaluation(self, attribute: str) -> list[tuple[str, int]]:
        """(caption, seed) of each picture that a slider is judged by; no folder has these captions."""
        ...

    def write_dataset(self, attribute: str, out: Path, count: int) -> None:
        """Writes the scale folders, `count` images in each, with their captions."""
        ...

    def values(self, attribute: str, pictures: Tensor) -> Tensor:
        """What the evaluation pictures [N, M, 3, H, W] show, [N, M] in the attribute's unit; NaN where that cannot be seen."""
        ...

    def measured(self, attribute: str, pictures: Tensor, multipliers: Sequence[float]) -> list[dict[str, float]]:
        """For each multiplier, 0 among them: mean, spread and `columns` of the evaluation pictures [N, M, 3, H, W]."""
        ...

    def training_pictures(self, attribute: str, scale: float) -> Tensor:
        """[N, 3, H, W]: as many pictures of the folder of a scale as are looked at through the VAE."""
        ...

    def through_the_vae(self, attribute: str, pictures: Tensor, scale: float) -> tuple[float, float]:
        """Mean value and a second figure of training pictures [N, 3, H, W] that went through the VAE."""
        ...


def dense_multipliers(attribute: Attribute) -> tuple[float, ...]:
    """0, the trained scales, the middles between them, and as far beyond both ends as is worth looking at.

    Below a ladder of positive scales these are its highest scale and half of it, negated; otherwise one step.
    """
    scales = attribute.scales
    middles = [round((a + b) / 2, 6) for a, b in pairwise(scales)]
    below = (-scales[-1], -scales[-1] / 2) if scales[0] > 0 else (2 * scales[0] - scales[1],)
    return tuple(sorted({*preview_multipliers(scales), *middles, *below}))
