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


@dataclass(frozen=True)
class Column:
    """A figure that is measured at each multiplier, beside the attribute's mean and spread."""

    form: str  # how it is written
    ideal: float = 0.0


ThroughVAE = Callable[[Tensor], Tensor]  # pictures [N, 3, H, W] → the same, encoded and decoded, on the same device


class World(Protocol):
    """What measuring sliders asks of a world. Pictures are fp32 RGB in [0, 1], and measured on the device that they are on."""

    image_size: int  # px
    model: Path  # the diffusers folder of the model to measure on unless another is named
    attributes: Mapping[str, Attribute]
    columns: Mapping[str, Column]  # the first two are shown in tables
    compared: tuple[str, ...]  # the attributes that are compared unless others are asked for
    fewest_scenes: int  # in the folders, unless more are asked for

    def evaluation(self, attribute: str) -> list[tuple[str, int]]:
        """(caption, seed) of each picture that a slider is judged by; no folder has these captions."""
        ...

    def write_dataset(self, attribute: str, out: Path, count: int) -> None:
        """Writes the scale folders, `count` images in each, with their captions."""
        ...

    def values(self, attribute: str, pictures: Tensor) -> Tensor:
        """What the evaluation pictures [N, M, 3, H, W] show, [N, M] in the attribute's unit; NaN where that cannot be seen."""
        ...

    def measured(
        self, attribute: str, pictures: Tensor, multipliers: Sequence[float], vae: ThroughVAE
    ) -> dict[str, tuple[float, ...]]:
        """Mean, spread and `columns` of the evaluation pictures [N, M, 3, H, W] at each of M multipliers, 0 among them."""
        ...

    def training_values(self, attribute: str, scale: float, vae: ThroughVAE) -> tuple[float, float]:
        """Mean of what the pictures of a scale's folder show after the VAE, and the second figure of `columns` or a spread."""
        ...


def dense_multipliers(attribute: Attribute) -> tuple[float, ...]:
    """0, the trained scales, the middles between them, and as far beyond both ends as is worth looking at.

    Below a ladder of positive scales these are its highest scale and half of it, negated; otherwise one step.
    """
    scales = attribute.scales
    middles = [round((a + b) / 2, 6) for a, b in pairwise(scales)]
    below = (-scales[-1], -scales[-1] / 2) if scales[0] > 0 else (2 * scales[0] - scales[1],)
    return tuple(sorted({*preview_multipliers(scales), *middles, *below}))
