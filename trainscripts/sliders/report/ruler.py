"""The ruler: reads the scale that a picture shows from its features, after being fitted on the folders."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

STRENGTHS = tuple(10.0**power for power in range(-5, 2))  # of the penalty, relative to the kernel's mean diagonal
SHARES = (0.25, 1.0, 4.0)  # variance of all cells together relative to that of the whole picture's averages
TINY = 1e-9  # a feature that never changes is divided by this, and stays 0


@dataclass(frozen=True)
class Ruler:
    """Ridge regression (Hoerl & Kennard 1970) from standardised features to the scale of their folder.

    It is fitted on all images at once, not on differences within scenes: the scenes teach it what to ignore, so that it
    reads pictures of other scenes without knowing what they show at scale 0.
    """

    mean: Tensor  # of each feature, [1 + cells, C] float64
    deviation: Tensor
    weight: Tensor  # [D] float64 of the standardised features, D = (1 + cells) · C
    middle: float  # mean of the scales
    error: float = float("nan")  # mean |reading − scale| over scenes that it was not fitted on

    @classmethod
    def fit(cls, features: Tensor, scales: Sequence[float]) -> Self:
        """features [scenes, scales, 1 + cells, C] float64: at least two scenes, so that each can be read by a ruler of the others.

        Of all SHARES and STRENGTHS, the ruler with the smallest such error: size shows in the whole picture's averages,
        position only in the cells'.
        """
        wanted = torch.tensor(scales, dtype=features.dtype)
        errors = torch.zeros(len(SHARES) * len(STRENGTHS), dtype=features.dtype)
        for scene in range(len(features)):
            others = torch.cat([features[:scene], features[scene + 1 :]])
            read = torch.stack([ruler.read(features[scene]) for ruler in cls._all(others, wanted)])
            errors += (read - wanted).abs().mean(1) / len(features)
        best = int(errors.argmin())
        return replace(cls._all(features, wanted)[best], error=errors[best].item())

    @classmethod
    def _all(cls, features: Tensor, scales: Tensor) -> list[Self]:
        """A ruler for each of SHARES and STRENGTHS."""
        mean, spread = features.mean((0, 1)), features.flatten(0, 1).std(0).clamp(min=TINY)
        found = []
        for share in SHARES:
            deviation = spread.clone()
            deviation[1:] *= ((len(deviation) - 1) / share) ** 0.5
            found += [cls(mean, deviation, *solution) for solution in _solutions((features - mean) / deviation, scales)]
        return found

    def standardised(self, features: Tensor) -> Tensor:
        """Features [..., 1 + cells, C] relative to those of the folders' images, [..., D]."""
        return ((features - self.mean) / self.deviation).flatten(-2)

    def read(self, features: Tensor) -> Tensor:
        """Features [..., 1 + cells, C] → the scale that each picture shows, [...].

        Far outside the folders' scales it shows too little.
        """
        return self.standardised(features) @ self.weight + self.middle


def _solutions(standardised: Tensor, scales: Tensor) -> list[tuple[Tensor, float]]:
    """(weight, middle) for each of STRENGTHS. Solves the dual problem, because there are fewer images than features."""
    rows = standardised.flatten(2).flatten(0, 1)
    wanted = (scales - scales.mean()).repeat(len(standardised))
    kernel = rows @ rows.T
    penalty = kernel.diagonal().mean() * torch.eye(len(kernel), dtype=kernel.dtype)
    return [
        (rows.T @ torch.linalg.solve(kernel + strength * penalty, wanted), scales.mean().item())
        for strength in STRENGTHS
    ]
