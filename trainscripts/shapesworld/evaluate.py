"""How good is a slider? Its pictures of captions and seeds that the training never saw, measured."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import PretrainedModel
from sliders.models.sdxl.loading import load_sdxl
from sliders.models.sdxl.model import SDXL
from sliders.sample.preview import preview_multipliers, sample_grid
from sliders.sample.sampling import Sampling

from shapesworld.attributes import ATTRIBUTES, EVALUATION_SEEDS, Attribute, evaluation_scenes
from shapesworld.world import IMAGE_SIZE, captions, measure

MODEL = Path(__file__).parent / "model"
SAMPLING = Sampling(IMAGE_SIZE, IMAGE_SIZE, steps=15, guidance=3.0)


def load_model() -> SDXL:
    """The shapes world's SDXL in float32 on the CPU, through the ordinary loader."""
    return load_sdxl(PretrainedModel(name_or_path=str(MODEL)), torch.float32)


@dataclass(frozen=True)
class Curve:
    """What the pictures show at each multiplier, over all evaluation captions, in the attribute's unit."""

    attribute: str
    multipliers: tuple[float, ...]
    mean: tuple[float, ...]
    spread: tuple[float, ...]  # standard deviation over the captions
    mess: tuple[float, ...]  # share of pixels of neither the caption's colour nor its background

    def at(self, column: str, multiplier: float) -> float:
        return getattr(self, column)[self.multipliers.index(multiplier)]

    @property
    def calibration(self) -> float:
        """Mean distance of the means from what is wanted, over the trained scales."""
        attribute = ATTRIBUTES[self.attribute]
        return sum(abs(self.at("mean", s) - attribute.at_scale(s)) for s in attribute.scales) / len(attribute.scales)

    @property
    def ordered(self) -> bool:
        """Do the means rise from each trained scale to the next?"""
        means = [self.at("mean", s) for s in ATTRIBUTES[self.attribute].scales]
        return all(a < b for a, b in pairwise(means))

    @property
    def order(self) -> float:
        """Share of neighbouring multipliers, between and beyond the trained ones too, at which the mean rises."""
        rises = [a < b for a, b in pairwise(self.mean)]
        return sum(rises) / len(rises)

    def as_json(self) -> dict:
        if len(self.multipliers) == 1:  # the base model
            return asdict(self)
        return {**asdict(self), "calibration": self.calibration, "ordered": self.ordered, "order": self.order}


def dense_multipliers(attribute: Attribute) -> tuple[float, ...]:
    """0, the trained scales, the middles between them, and one step beyond the highest."""
    middles = [round((a + b) / 2, 6) for a, b in pairwise(attribute.scales)]
    return tuple(sorted({*preview_multipliers(attribute.scales), *middles}))


def evaluate(
    model: SDXL, network: AdaptorNetwork | None, name: str, multipliers: Sequence[float] | None = None
) -> Curve:
    """Sample the evaluation captions at each multiplier and measure. Without a network: the base model, at multiplier 0.

    The model's text encoders must still be loaded.
    """
    attribute, scenes = ATTRIBUTES[name], evaluation_scenes(name)
    multipliers = tuple(multipliers or dense_multipliers(attribute)) if network is not None else (0.0,)
    texts = captions(scenes)
    embeds = model.encode_prompts([*texts, ""], str(model.unet.device))
    jobs = [(embeds[text], seed) for text, seed in zip(texts, EVALUATION_SEEDS, strict=True)]
    pictures = sample_grid(model, network, jobs, embeds[""], multipliers, SAMPLING)
    mean, spread, mess = [], [], []
    for column in range(len(multipliers)):
        found = measure(pictures[:, column], scenes, attribute.paint_range)
        values = getattr(found, attribute.measure)
        values = values[~values.isnan()]  # a picture without any shape has no position or hue; mess tells of it
        mean.append(values.mean().item())
        spread.append(values.std().item() if len(values) > 1 else 0.0)
        mess.append(found.mess.mean().item())
    return Curve(name, multipliers, tuple(mean), tuple(spread), tuple(mess))


def format_curve(title: str, curve: Curve) -> str:
    """The four columns as text: calibration, spread, order, mess."""
    attribute = ATTRIBUTES[curve.attribute]
    lines = [f"{title}", f"  multiplier  {curve.attribute}, {attribute.unit} (spread)   wanted   mess"]
    for m, mean, spread, mess in zip(curve.multipliers, curve.mean, curve.spread, curve.mess, strict=True):
        wanted = f"{attribute.at_scale(m):6.1f}" + (" *" if m in attribute.scales else "  ")
        lines.append(f"  {m:10.4g}  {mean:8.1f} ({spread:4.1f})          {wanted}   {mess:.3f}")
    if len(curve.multipliers) > 1:
        lines.append(f"  calibration {curve.calibration:.2f} over the trained scales (*), {_order(curve)}")
    return "\n".join(lines)


def _order(curve: Curve) -> str:
    return f"{'rising' if curve.ordered else 'NOT rising'} over them, rising at {curve.order:.0%} of all neighbours"
