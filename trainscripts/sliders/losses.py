"""Objectives: batch → loss of each row. `train.loss` is looked up in `LOSSES`.

A loss owns the forward call and returns unreduced values, so that a new one needs no edit of the loop.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from sliders.batch import Batch
from sliders.models.schedule import NoiseSchedule


class Denoiser(Protocol):
    schedule: NoiseSchedule

    def denoise(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, pooled: Tensor, time_ids: Tensor) -> Tensor: ...


def reference(model: Denoiser, batch: Batch) -> Tensor:
    """Concept Sliders' image loss (Gandikota et al. 2024, arXiv:2311.12092, section 4.2): noise the image of scale s
    and, at multiplier s, predict that noise.

    Returns the mean squared error of each row, float32 [B].
    """
    schedule = model.schedule
    noisy = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    prediction = model.denoise(noisy, batch.timesteps, batch.tokens, batch.pooled, batch.time_ids)
    target = schedule.target(batch.latents, batch.noise, batch.timesteps)
    return (prediction - target).square().flatten(1).mean(1)


LOSSES: dict[str, Callable[[Denoiser, Batch], Tensor]] = {"reference": reference}
