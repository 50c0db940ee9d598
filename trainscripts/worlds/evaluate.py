"""How good is a slider? Its pictures of captions and seeds that the training never saw, measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from sliders.adaptors.network import AdaptorNetwork
from sliders.models.base import Model
from sliders.sample.sampling import Sampling

from worlds.base import Attribute, World, dense_multipliers
from worlds.models import device_of, sampled, through_the_vae, world_sampling


@dataclass(frozen=True)
class Curve:
    """What the pictures show at each multiplier, over all evaluation captions."""

    name: str
    attribute: Attribute
    multipliers: tuple[float, ...]
    columns: dict[str, tuple[float, ...]]  # mean and spread in the attribute's unit, and the world's own

    @property
    def mean(self) -> tuple[float, ...]:
        return self.columns["mean"]

    @property
    def spread(self) -> tuple[float, ...]:
        """Standard deviation over the captions."""
        return self.columns["spread"]

    def at(self, column: str, multiplier: float) -> float:
        return self.columns[column][self.multipliers.index(multiplier)]

    @property
    def calibration(self) -> float:
        """Mean distance of the means from what is wanted, over the trained scales."""
        attribute = self.attribute
        return sum(abs(self.at("mean", s) - attribute.at_scale(s)) for s in attribute.scales) / len(attribute.scales)

    @property
    def ordered(self) -> bool:
        """Do the means rise from each trained scale to the next?"""
        means = [self.at("mean", s) for s in self.attribute.scales]
        return all(a < b for a, b in pairwise(means))

    @property
    def order(self) -> float:
        """Share of neighbouring multipliers, between and beyond the trained ones too, at which the mean rises."""
        rises = [a < b for a, b in pairwise(self.mean)]
        return sum(rises) / len(rises)

    def as_json(self) -> dict:
        found = {"attribute": self.name, "multipliers": self.multipliers, **self.columns}
        if len(self.multipliers) == 1:  # the base model
            return found
        return {**found, "calibration": self.calibration, "ordered": self.ordered, "order": self.order}


def evaluate(
    world: World,
    model: Model,
    network: AdaptorNetwork | None,
    name: str,
    multipliers: Sequence[float] | None = None,
    sampling: Sampling | None = None,
) -> Curve:
    """Sample the evaluation captions at each multiplier and measure. Without a network: the base model, at multiplier 0.

    multipliers: 0 among them; None: `dense_multipliers`. sampling: None: `world_sampling`. The model's text encoders must
    still be loaded.
    """
    attribute = world.attributes[name]
    multipliers = tuple(multipliers or dense_multipliers(attribute)) if network is not None else (0.0,)
    sampling = sampling or world_sampling(world.image_size, device_of(model))
    pictures = sampled(model, network, world.evaluation(name), multipliers, sampling)
    columns = world.measured(name, pictures, multipliers, partial(through_the_vae, model))
    return Curve(name, attribute, multipliers, columns)


def vae_limits(world: World, model: Model, name: str) -> list[tuple[float, float, float, float]]:
    """(scale, wanted, measured, second figure) of the training pictures, encoded and decoded: no slider can do better."""
    attribute = world.attributes[name]
    vae = partial(through_the_vae, model)
    return [(s, attribute.at_scale(s), *world.training_values(name, s, vae)) for s in attribute.scales]


def format_curve(title: str, curve: Curve, world: World) -> str:
    """The columns as text, a line for each multiplier."""
    attribute = curve.attribute
    head = f"  multiplier  {curve.name}, {attribute.unit} (spread)"
    lines = [f"{title}", f"{head:44s} wanted     " + "  ".join(f"{name:>7s}" for name in world.columns)]
    for i, m in enumerate(curve.multipliers):
        wanted = f"{attribute.at_scale(m):6.4g}" + (" *" if m in attribute.scales else "  ")
        others = "  ".join(
            f"{format(curve.columns[name][i], column.form):>{max(7, len(name))}s}"
            for name, column in world.columns.items()
        )
        lines.append(f"  {m:10.4g}  {curve.mean[i]:8.4g} ({curve.spread[i]:5.2g})              {wanted}   {others}")
    if len(curve.multipliers) > 1:
        lines.append(f"  calibration {curve.calibration:.3g} over the trained scales (*), {_order(curve)}")
    return "\n".join(lines)


def _order(curve: Curve) -> str:
    return f"{'rising' if curve.ordered else 'NOT rising'} over them, rising at {curve.order:.0%} of all neighbours"
