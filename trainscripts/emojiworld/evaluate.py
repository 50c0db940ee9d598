"""The emoji world as its sliders are judged by: sixteen held-out names, what their pictures show, and what else has changed."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from worlds.base import Column, ThroughVAE

from emojiworld.attributes import (
    ATTRIBUTES,
    EVALUATION_SEEDS,
    TRAINING_COUNT,
    at_scale,
    evaluation_scenes,
)
from emojiworld.distance import distance
from emojiworld.looking import Seen, look
from emojiworld.make_dataset import write_dataset
from emojiworld.pictures import PICTURES, Pictures, load_pictures
from emojiworld.reading import Shown
from emojiworld.world import IMAGE_SIZE, captions, render

MODEL = Path(__file__).parent / "model"


class EmojiWorld:
    """See `worlds.base.World`. pictures: the archive, which is read when it is first needed."""

    image_size = IMAGE_SIZE
    attributes = ATTRIBUTES
    columns = {  # noqa: RUF012
        # How far the attribute moves from the picture of multiplier 0 with the same seed, in steps from folder to folder,
        # over how much else changes, in what such a step changes in the data; at 1 as little as between folders.
        "selectivity": Column(".2f", 1.0),
        # Distance from the name's true picture at what the multiplier promises, in distances between different names.
        "strangeness": Column(".2f"),
        # How much else changes, in what a step from folder to folder changes in the data.
        "across": Column(".2f"),
    }
    compared = ("skin", "style", "frost", "hue", "size")
    fewest_scenes = TRAINING_COUNT

    def __init__(self, pictures: Path = PICTURES, model: Path = MODEL):
        self.archive, self.model = pictures, model
        self._on: dict[torch.device, Pictures] = {}

    @property
    def pictures(self) -> Pictures:
        return self.pictures_on(torch.device("cpu"))

    def pictures_on(self, device: torch.device) -> Pictures:
        """Read once, and kept on each device that they were needed on."""
        if device not in self._on:
            self._on[device] = load_pictures(self.archive) if device.type == "cpu" else self.pictures.to(device)
        return self._on[device]

    def __getstate__(self) -> dict:
        return {**vars(self), "_on": {}}  # another process reads the pictures itself

    def evaluation(self, attribute: str) -> list[tuple[str, int]]:
        texts = captions(evaluation_scenes(self.pictures, attribute), self.pictures)
        return list(zip(texts, EVALUATION_SEEDS, strict=True))

    def write_dataset(self, attribute: str, out: Path, count: int) -> None:
        write_dataset(self.pictures, attribute, out, count)

    def values(self, attribute: str, pictures: Tensor) -> Tensor:
        return torch.stack([seen.values for seen in self.seen(attribute, pictures)], 1)

    def seen(self, attribute: str, pictures: Tensor) -> list[Seen]:
        """pictures [N, M, 3, H, W] of the evaluation captions → one for each multiplier."""
        table, here = ATTRIBUTES[attribute], self.pictures_on(pictures.device)
        captioned = evaluation_scenes(here, attribute)
        return [look(pictures[:, i], captioned, here, table.field, table.read) for i in range(pictures.shape[1])]

    def measured(
        self, attribute: str, pictures: Tensor, multipliers: Sequence[float], vae: ThroughVAE
    ) -> dict[str, tuple[float, ...]]:
        seen = self.seen(attribute, pictures)
        zero = tuple(multipliers).index(0.0)
        unit = self.step_across(attribute, vae, pictures.device) if len(multipliers) > 1 else math.nan
        columns: dict[str, list[float]] = {name: [] for name in ("mean", "spread", *self.columns)}
        for i, multiplier in enumerate(multipliers):
            values = seen[i].values[~seen[i].values.isnan()]
            along = (seen[i].values - seen[zero].values).abs().nanmean().item() / self.step_along(attribute)
            across = self.across(attribute, (pictures[:, zero], seen[zero]), (pictures[:, i], seen[i])) / unit
            columns["mean"].append(values.mean().item())
            columns["spread"].append(values.std().item() if len(values) > 1 else 0.0)
            columns["selectivity"].append(along / across if i != zero else math.nan)
            columns["strangeness"].append(self.strangeness(attribute, pictures[:, i], seen[i], multiplier))
            columns["across"].append(across if i != zero else 0.0)
        return {name: tuple(column) for name, column in columns.items()}

    def step_along(self, attribute: str) -> float:
        """By how much the attribute changes from folder to folder, in its unit."""
        table = ATTRIBUTES[attribute]
        return abs(table.value(table.scales[-1]) - table.value(table.scales[0])) / (len(table.scales) - 1)

    def step_across(self, attribute: str, vae: ThroughVAE, device: torch.device) -> float:
        """How much else is seen to change from folder to folder: between true pictures of the held-out names, after the VAE.

        Most of it is what the VAE makes of two pictures, and what taking the attribute out leaves behind.
        """
        here = self.pictures_on(device)
        scenes = evaluation_scenes(here, attribute)
        ladder = [vae(render(at_scale(scenes, attribute, s), here)) for s in ATTRIBUTES[attribute].scales]
        seen = self.seen(attribute, torch.stack(ladder, 1))
        rungs = list(zip(ladder, seen, strict=True))
        steps = [self.across(attribute, lower, upper) for lower, upper in pairwise(rungs)]
        return sum(steps) / len(steps)

    def across(self, attribute: str, first: Shown, second: Shown) -> float:
        """Mean distance of pictures [N, 3, H, W] of the same scenes once the attribute is taken out."""
        level = ATTRIBUTES[attribute].level
        return distance(*level(first, second, self.pictures_on(first[0].device))).mean().item()

    def strangeness(self, attribute: str, images: Tensor, seen: Seen, multiplier: float) -> float:
        """Mean distance of the images from the true pictures of their captions with the attribute at its wanted value.

        1 is the mean distance between true pictures of different names, drawn alike.
        """
        here = self.pictures_on(images.device)
        table = ATTRIBUTES[attribute]
        true = seen.having(table.field, table.value(multiplier)).drawn(here)
        shifted = seen.renamed(seen.scenes.name.roll(1)).having(table.field, table.value(multiplier)).drawn(here)
        return (distance(images, true).mean() / distance(shifted, true).mean()).item()

    def training_values(self, attribute: str, scale: float, vae: ThroughVAE) -> tuple[float, float]:
        """Mean and standard deviation of what the held-out names' true pictures show after the VAE."""
        scenes = evaluation_scenes(self.pictures, attribute)
        shown = vae(render(at_scale(scenes, attribute, scale), self.pictures))
        values = self.values(attribute, shown[:, None])
        values = values[~values.isnan()]
        return values.mean().item(), values.std().item()


EMOJI = EmojiWorld()
