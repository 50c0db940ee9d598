"""How good is a slider? Its pictures of captions and seeds that the training never saw, measured."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import PretrainedModel
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.model import SDXL
from sliders.sample.preview import preview_multipliers, sample_grid
from sliders.sample.sampling import Sampling
from torch import Tensor

from shapesworld.attributes import ATTRIBUTES, EVALUATION_SEEDS, Attribute, evaluation_scenes, measured, training_scenes
from shapesworld.world import IMAGE_SIZE, Measures, captions, render

MODEL = Path(__file__).parent / "model"
SAMPLING = Sampling(IMAGE_SIZE, IMAGE_SIZE, steps=15, guidance=3.0)
GPU_ROWS = 80  # pictures sampled at once on a GPU


def load_model() -> SDXL:
    """The shapes world's SDXL in float32 on the CPU, through the ordinary loader."""
    return SDXL_FAMILY.load(PretrainedModel(name_or_path=str(MODEL)), torch.float32)


@dataclass(frozen=True)
class Curve:
    """What the pictures show at each multiplier, over all evaluation captions."""

    attribute: str
    multipliers: tuple[float, ...]
    mean: tuple[float, ...]  # in the attribute's unit
    spread: tuple[float, ...]  # standard deviation over the captions, in the same unit
    mess: tuple[float, ...]  # share of pixels of neither the caption's colour nor its background
    shape: tuple[float, ...]  # intersection over union with the caption's perfect shape
    drift: tuple[
        float, ...
    ]  # px that the shape lies from where it lies at multiplier 0; not along what the slider moves
    recolour: tuple[float, ...]  # RGB distance of the shape's mean colour from that at multiplier 0

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
    """0, the trained scales, the middles between them, and as far beyond both ends as is worth looking at.

    Below a ladder of positive scales these are its highest scale and half of it, negated; otherwise one step.
    """
    scales = attribute.scales
    middles = [round((a + b) / 2, 6) for a, b in pairwise(scales)]
    below = (-scales[-1], -scales[-1] / 2) if scales[0] > 0 else (2 * scales[0] - scales[1],)
    return tuple(sorted({*preview_multipliers(scales), *middles, *below}))


def evaluate(
    model: SDXL,
    network: AdaptorNetwork | None,
    name: str,
    multipliers: Sequence[float] | None = None,
    sampling: Sampling = SAMPLING,
) -> Curve:
    """Sample the evaluation captions at each multiplier and measure. Without a network: the base model, at multiplier 0.

    multipliers: 0 among them. The model's text encoders must still be loaded.
    """
    attribute, scenes = ATTRIBUTES[name], evaluation_scenes(name)
    multipliers = tuple(multipliers or dense_multipliers(attribute)) if network is not None else (0.0,)
    texts = captions(scenes)
    embeds = model.encode_prompts([*texts, ""], str(model.denoiser.device))
    jobs = [(embeds[text], seed) for text, seed in zip(texts, EVALUATION_SEEDS, strict=True)]
    pictures = sample_grid(model, network, jobs, embeds[""], multipliers, sampling)
    found = [measured(name, pictures[:, column], scenes) for column in range(len(multipliers))]
    base = found[multipliers.index(0.0)]
    columns = [_columns(measures, base, attribute) for measures in found]
    return Curve(name, multipliers, **{key: tuple(c[key] for c in columns) for key in columns[0]})


def _columns(found: Measures, base: Measures, attribute: Attribute) -> dict[str, float]:
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


def _values(found: Measures, base: Measures, attribute: Attribute) -> Tensor:
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


@torch.no_grad()
def through_the_vae(model: SDXL, name: str) -> list[tuple[float, float, float, float]]:
    """(scale, wanted, measured, shape) of the training pictures, encoded and decoded: no slider can do better."""
    attribute = ATTRIBUTES[name]
    found = []
    for scale in attribute.scales:
        scenes = training_scenes(name, scale)
        latents = model.vae.encode(render(scenes).to(model.vae.device) * 2 - 1).latent_dist.mean
        pictures = (model.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).cpu()
        shown = measured(name, pictures, scenes)
        values = getattr(shown, attribute.measure)
        found.append((scale, attribute.at_scale(scale), _mean(values), _mean(shown.shape)))
    return found


def format_curve(title: str, curve: Curve) -> str:
    """The columns as text, a line for each multiplier."""
    attribute = ATTRIBUTES[curve.attribute]
    head = f"  multiplier  {curve.attribute}, {attribute.unit} (spread)"
    lines = [f"{title}", f"{head:44s} wanted     mess   shape  drift  recolour"]
    for i, m in enumerate(curve.multipliers):
        wanted = f"{attribute.at_scale(m):6.4g}" + (" *" if m in attribute.scales else "  ")
        lines.append(
            f"  {m:10.4g}  {curve.mean[i]:8.4g} ({curve.spread[i]:5.2g})              {wanted}   {curve.mess[i]:.3f}   "
            f"{curve.shape[i]:.3f}  {curve.drift[i]:5.1f}  {curve.recolour[i]:.3f}"
        )
    if len(curve.multipliers) > 1:
        lines.append(f"  calibration {curve.calibration:.3g} over the trained scales (*), {_order(curve)}")
    return "\n".join(lines)


def _order(curve: Curve) -> str:
    return f"{'rising' if curve.ordered else 'NOT rising'} over them, rising at {curve.order:.0%} of all neighbours"
