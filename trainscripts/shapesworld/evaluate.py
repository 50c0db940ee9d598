"""The shapes world as its sliders are judged by: sixteen captions, and what their pictures show."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from worlds.base import Column, ThroughVAE

from shapesworld.attributes import (
    ATTRIBUTES,
    EVALUATION_SEEDS,
    ShapesAttribute,
    evaluation_scenes,
    measured,
    training_scenes,
)
from shapesworld.make_dataset import write_dataset
from shapesworld.world import IMAGE_SIZE, Measures, captions, render


class ShapesWorld:
    """See `worlds.base.World`."""

    image_size = IMAGE_SIZE
    model = Path(__file__).parent / "model"
    attributes = ATTRIBUTES
    columns = {  # noqa: RUF012
        "mess": Column(".3f"),  # share of pixels of neither the caption's colour nor its background
        "shape": Column(".2f", 1.0),  # intersection over union with the caption's perfect shape
        "drift": Column(
            ".1f"
        ),  # px that the shape lies from where it lies at multiplier 0; not along what the slider moves
        "recolour": Column(".3f"),  # RGB distance of the shape's mean colour from that at multiplier 0
    }
    compared = ("size", "size_hard", "position", "stretch", "hole", "hue")
    fewest_scenes = 6

    def evaluation(self, attribute: str) -> list[tuple[str, int]]:
        return list(zip(captions(evaluation_scenes(attribute)), EVALUATION_SEEDS, strict=True))

    def write_dataset(self, attribute: str, out: Path, count: int) -> None:
        write_dataset(attribute, out, count)

    def values(self, attribute: str, pictures: Tensor) -> Tensor:
        measures = self._measures(attribute, pictures)
        return torch.stack([getattr(found, ATTRIBUTES[attribute].measure) for found in measures], 1)

    def measured(
        self, attribute: str, pictures: Tensor, multipliers: Sequence[float], vae: ThroughVAE
    ) -> dict[str, tuple[float, ...]]:
        found = self._measures(attribute, pictures)
        base = found[tuple(multipliers).index(0.0)]
        columns = [_columns(measures, base, ATTRIBUTES[attribute]) for measures in found]
        return {key: tuple(column[key] for column in columns) for key in columns[0]}

    def _measures(self, attribute: str, pictures: Tensor) -> list[Measures]:
        """One for each multiplier."""
        scenes = evaluation_scenes(attribute)
        return [measured(attribute, pictures[:, column], scenes) for column in range(pictures.shape[1])]

    def training_values(self, attribute: str, scale: float, vae: ThroughVAE) -> tuple[float, float]:
        scenes = training_scenes(attribute, scale)
        shown = measured(attribute, vae(render(scenes)), scenes)
        return _mean(getattr(shown, ATTRIBUTES[attribute].measure)), _mean(shown.shape)


SHAPES = ShapesWorld()


def _columns(found: Measures, base: Measures, attribute: ShapesAttribute) -> dict[str, float]:
    values = _seen(_values(found, base, attribute))
    across = torch.zeros_like(found.x) if attribute.measure == "x" else found.x - base.x
    return {
        "mean": values.mean().item(),
        "spread": values.std().item() if len(values) > 1 else 0.0,
        "mess": found.mess.mean().item(),
        "shape": _mean(found.shape),
        "drift": _mean(torch.hypot(across, found.y - base.y)),
        "recolour": _mean((found.colour - base.colour).norm(dim=1)),
    }


def _values(found: Measures, base: Measures, attribute: ShapesAttribute) -> Tensor:
    """What the attribute reads. A hue is an angle, and taken within half a turn of that at multiplier 0."""
    values = getattr(found, attribute.measure)
    if attribute.measure != "hue":
        return values
    start = base.hue.nan_to_num(0)
    return start + (values - start + 180) % 360 - 180


def _seen(values: Tensor) -> Tensor:
    """Without those of pictures that show no shape, and so no place or hue; mess shows that."""
    return values[~values.isnan()]


def _mean(values: Tensor) -> float:
    return _seen(values).mean().item()
