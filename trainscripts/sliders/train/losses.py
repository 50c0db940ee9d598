"""Objectives: batch → loss of each row. `train.loss` is looked up in `LOSSES`.

A loss owns the forward call and returns unreduced values, so that a new one needs no edit of the loop.
"""

from collections.abc import Callable

from torch import Tensor

from sliders.data.batch import Batch
from sliders.train.denoiser import AdaptedDenoiser

Loss = Callable[[AdaptedDenoiser, Batch], Tensor]


def reference(denoiser: AdaptedDenoiser, batch: Batch) -> Tensor:
    """Concept Sliders' image loss (Gandikota et al. 2024, arXiv:2311.12092, section 4.2): noise the image of scale s
    and, at multiplier s, predict that noise.

    Returns the mean squared error of each row, float32 [B].
    """
    schedule = denoiser.schedule
    noisy = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    target = schedule.target(noisy, batch.latents, batch.timesteps)
    return _per_row(denoiser.adapted(noisy, batch) - target)


def crossing(denoiser: AdaptedDenoiser, batch: Batch) -> Tensor:
    """Noise the image of *another* scale and, at multiplier s, predict what leads to the image of s.

    The adaptor learns to move the attribute rather than to reproduce the images. Errors are weighted as in
    `NoiseSchedule.crossing_weight`. Returns float32 [B].
    """
    schedule = denoiser.schedule
    noisy = schedule.add_noise(batch.sources, batch.noise, batch.timesteps)
    target = schedule.target(noisy, batch.latents, batch.timesteps)
    return schedule.crossing_weight(batch.timesteps) * _per_row(denoiser.adapted(noisy, batch) - target)


def difference(denoiser: AdaptedDenoiser, batch: Batch) -> Tensor:
    """As crossing, but the target is the frozen model's own prediction, moved by what sets the two images apart.

    Where they do not differ the target is the base model itself, so that what is not the attribute stays. Costs a
    forward pass more. Returns float32 [B].
    """
    schedule = denoiser.schedule
    noisy = schedule.add_noise(batch.sources, batch.noise, batch.timesteps)
    target = denoiser.base(noisy, batch) + schedule.shift(batch.sources, batch.latents, batch.timesteps)
    return schedule.crossing_weight(batch.timesteps) * _per_row(denoiser.adapted(noisy, batch) - target)


def _per_row(error: Tensor) -> Tensor:
    return error.square().flatten(1).mean(1)


LOSSES: dict[str, Loss] = {"reference": reference, "crossing": crossing, "difference": difference}
