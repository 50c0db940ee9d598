"""Where between noise and image a slider is trained: the distribution that timesteps are drawn from."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import exp, log

from sliders.config.schema import Train
from sliders.system.errors import InputError

NUM_TIMESTEPS = 1000  # of every family: min_timestep, max_timestep and timestep_bias are in these


@dataclass(frozen=True)
class NoiseLevels:
    """What was measured at each of some timesteps."""

    timesteps: tuple[int, ...]
    # variance over the scales of the model's error in the image: what a slider adds
    differing: tuple[float, ...]
    errors: tuple[float, ...]  # the model's mean squared error in the noise


@dataclass(frozen=True)
class TimestepDistribution:
    """Timesteps with the share of draws that falls on each."""

    timesteps: tuple[int, ...]
    shares: tuple[float, ...]  # not negative, with sum 1
    weights: tuple[float, ...] | None = None  # of the squared error at each timestep; None: all 1

    def draw(self, u: float) -> int:
        """u in [0, 1), uniform -> a timestep."""
        index = bisect_right(self._cumulative, u)
        return self.timesteps[min(index, len(self.timesteps) - 1)]

    @cached_property
    def _cumulative(self) -> tuple[float, ...]:
        return tuple(accumulate(self.shares))

    def weight_table(self) -> list[float] | None:
        """Weights of all timesteps, 0 for those that are not drawn; None if all weigh alike."""
        if self.weights is None:
            return None
        table = dict(zip(self.timesteps, self.weights, strict=True))
        return [table.get(timestep, 0.0) for timestep in range(NUM_TIMESTEPS)]

    @property
    def median(self) -> int:
        """Half of the draws are noisier."""
        return self.draw(0.5)


def timestep_of(k: int, max_denoising_steps: int) -> int:
    """Timestep of denoising step k, 1 <= k < max_denoising_steps: from near 999 (noise) down to near 0 (image)."""
    return NUM_TIMESTEPS - 1 - NUM_TIMESTEPS * k // max_denoising_steps


def allowed_timesteps(train: Train) -> tuple[int, ...]:
    """The denoising steps within `min_timestep` and `max_timestep`. Raises InputError where there is none."""
    steps = (timestep_of(k, train.max_denoising_steps) for k in range(1, train.max_denoising_steps))
    within = tuple(t for t in steps if train.min_timestep <= t <= train.max_timestep)
    if not within:
        raise InputError(
            f"train.min_timestep: none of the {train.max_denoising_steps - 1} timesteps of max_denoising_steps lies within "
            f"{train.min_timestep} and train.max_timestep {train.max_timestep}: widen the range."
        )
    return within


def biased(timesteps: Sequence[int], bias: float) -> TimestepDistribution:
    """Timestep t is drawn in proportion to ((t + 1) / 1000) ** bias; 0 draws all alike.

    Size, place and shape are decided where a picture is mostly noise. The error is small there, so uniform draws leave
    the gradient to timesteps that only matter for detail; so does a weight on the error, which Adam divides out again.
    """
    return TimestepDistribution(tuple(timesteps), _normalised(((t + 1) / NUM_TIMESTEPS) ** bias for t in timesteps))


def logit_normal(timesteps: Sequence[int], shift: float) -> TimestepDistribution:
    """Draws of the noise's share s = shift · u / (1 + (shift − 1) · u), with logit(u) normal (Esser et al. 2024, arXiv:2403.03206,
    sections 3.1 and 5.3.2). Timestep t is drawn in proportion to the density of s at (t + 1/2) / 1000.
    """

    def density(timestep: int) -> float:
        s = (timestep + 0.5) / NUM_TIMESTEPS
        return exp(-0.5 * (log(s / (1 - s)) - log(shift)) ** 2) / (s * (1 - s))

    return TimestepDistribution(tuple(timesteps), _normalised(map(density, timesteps)))


def unmeasured(timesteps: Sequence[int], train: Train) -> TimestepDistribution:
    """The distribution that the settings name, where `timestep_bias` is not `auto`."""
    if train.timestep_shift is not None:
        return logit_normal(timesteps, train.timestep_shift)
    return biased(timesteps, train.timestep_bias)


def measured(timesteps: Sequence[int], levels: NoiseLevels) -> TimestepDistribution:
    """Timestep t is drawn in proportion to the square root of what the scales differ in there, unseen by the model.

    The squared error is weighted by the inverse of the model's own, so that no noise level owns the gradient.
    """
    differing = _interpolated(levels.timesteps, list(accumulate(levels.differing, max)), timesteps)
    shares = _normalised(value**0.5 for value in differing)
    inverse = [1 / value for value in _interpolated(levels.timesteps, levels.errors, timesteps)]
    mean = sum(share * weight for share, weight in zip(shares, inverse, strict=True))
    return TimestepDistribution(tuple(timesteps), shares, tuple(weight / mean for weight in inverse))


def _normalised(values: Iterable[float]) -> tuple[float, ...]:
    values = tuple(values)
    total = sum(values)
    return tuple(value / total for value in values)


def _interpolated(xs: Sequence[float], ys: Sequence[float], at: Iterable[float]) -> list[float]:
    """Piecewise linear through (xs, ascending; ys), constant beyond the ends."""
    found = []
    for x in at:
        right = min(max(bisect_right(xs, x), 1), len(xs) - 1)
        share = min(max((x - xs[right - 1]) / (xs[right] - xs[right - 1]), 0.0), 1.0)
        found.append(ys[right - 1] + share * (ys[right] - ys[right - 1]))
    return found
