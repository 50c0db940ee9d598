"""A slider's card: what its pictures show at each multiplier, in numbers. The user's guide defines each of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Self

import numpy as np

from sliders.report.sweeps import longest_run

RECOGNISED = 0.75  # share of the pictures that must still be recognised for a multiplier to count as usable
STILL = 0.01  # of the distance between the lowest and the highest scale: readings that differ by less show the same
STRANGE = 0.8  # foreign change from which a picture counts as another one
FACTORS = np.geomspace(0.1, 10, 2001)  # in which a factor is sought, 0.23 % apart
NUMBERS = 4  # significant digits in a file


@dataclass(frozen=True)
class Card:
    """Measured on sweeps: the pictures of one prompt and seed at each of the ascending multipliers."""

    scales: tuple[float, ...]  # of the folders, ascending
    multipliers: tuple[float, ...]  # 0 among them
    readings: tuple[tuple[float, ...], ...]  # [sweeps][multipliers]: the scale that each picture shows
    ruler_error: float  # mean |reading − scale| of the folders' images, each read by a ruler of the other scenes
    order: tuple[float, ...]  # of each sweep: rank correlation of readings and multipliers
    roughness: tuple[float, ...]  # of each sweep: its largest detour, in distances between two scenes
    foreign: tuple[float, ...]  # per multiplier: change that the folders do not show, in the same unit
    foreign_in_folders: float  # the same between the folders of the lowest and the highest scale
    recognised: tuple[float, ...] | None  # per multiplier: share of pictures that are nearest to their own sweep
    images: int  # of the folders that were measured

    @cached_property
    def curve(self) -> np.ndarray:
        """The mean reading at each multiplier."""
        return np.mean(self.readings, axis=0)

    def shown_at(self, multipliers: Sequence[float] | np.ndarray) -> np.ndarray:
        """The curve at these multipliers, by linear interpolation."""
        return np.interp(multipliers, self.multipliers, self.curve)

    @property
    def calibration(self) -> float:
        """Mean |curve − scale| over the folders' scales."""
        return self.calibration_with(1.0)

    def calibration_with(self, factor: float) -> float:
        """What `calibration` would be if all of the slider's weights were multiplied by `factor`."""
        scales = np.array(self.scales)
        return float(np.abs(self.shown_at(factor * scales) - scales).mean())

    @property
    def doubt(self) -> float:
        """The standard error of the curve, mean over the folders' scales: rows differ. 0 for a single row."""
        if len(self.readings) < 2:
            return 0.0
        errors = np.std(self.readings, axis=0, ddof=1) / len(self.readings) ** 0.5
        return float(np.interp(self.scales, self.multipliers, errors).mean())

    @property
    def usable(self) -> tuple[float, float]:
        """The widest range of multipliers at which pictures are recognised: all for a single sweep, 0 if there is none."""
        if self.recognised is None:
            return self.multipliers[0], self.multipliers[-1]
        run = longest_run([share >= RECOGNISED for share in self.recognised])
        return (0.0, 0.0) if run is None else (self.multipliers[run[0]], self.multipliers[run[1]])

    def multiplier_showing(self, scale: float) -> float | None:
        """The usable multiplier nearest to 0 at which the curve shows `scale`, to four decimals; None if there is none."""
        low, high = self.usable
        found = []
        for (a, start), (b, end) in pairwise(zip(self.multipliers, self.curve, strict=True)):
            if low <= a and b <= high and min(start, end) <= scale <= max(start, end):
                share = (scale - start) / (end - start) if end != start else 0.0
                found.append(round(float(a + share * (b - a)), 4))
        return min(found, key=abs, default=None)

    def shown_within(self) -> tuple[float, float]:
        """The lowest and the highest scale that the curve shows within the usable range."""
        low, high = self.usable
        inside = [shown for m, shown in zip(self.multipliers, self.curve, strict=True) if low <= m <= high]
        return float(min(inside)), float(max(inside))

    @property
    def lost(self) -> tuple[float, ...]:
        """The folders' scales at which pictures have become others. What is read there, and so the calibration, means little."""
        foreign = np.interp(self.scales, self.multipliers, self.foreign)
        return tuple(scale for scale, change in zip(self.scales, foreign, strict=True) if change >= STRANGE)

    @property
    def still(self) -> bool:
        """Whether each sweep shows the same at all multipliers, so that the slider changes nothing."""
        small = STILL * (self.scales[-1] - self.scales[0])
        return all(max(sweep) - min(sweep) < small for sweep in self.readings)

    @property
    def rank(self) -> tuple[bool, int, float]:
        """Sorts cards from good to bad: first by whether anything changes and how many scales are lost, then by calibration."""
        return self.still, len(self.lost), self.calibration

    def factor(self) -> float:
        """The factor on the weights with the smallest squared error of the curve at the folders' scales.

        Only factors at which all these scales lie within what was measured.
        """
        scales = np.array(self.scales)
        inside = [
            factor for factor in FACTORS
            if factor * scales[-1] <= self.multipliers[-1] and factor * scales[0] >= self.multipliers[0]
        ]  # fmt: skip
        errors = [np.square(self.shown_at(factor * scales) - scales).sum() for factor in inside]
        return float(inside[int(np.argmin(errors))])

    def with_factor(self, factor: float) -> Self:
        """The card of the slider whose weights are multiplied by `factor`: the same pictures at other multipliers."""
        found = asdict(self)
        found["multipliers"] = tuple(multiplier / factor for multiplier in self.multipliers)
        return type(self)(**found)

    def as_json(self) -> str:
        """Compact, with numbers rounded to NUMBERS digits."""
        return json.dumps(_rounded({**asdict(self), "calibration": self.calibration, "usable": self.usable}))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError, KeyError or TypeError for text that `as_json` did not write."""
        found = json.loads(text)
        del found["calibration"], found["usable"]
        found["readings"] = tuple(map(tuple, found["readings"]))
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in found.items()})


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.{NUMBERS}g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value
