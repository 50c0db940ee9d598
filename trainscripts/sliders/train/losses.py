"""Objectives: batch -> loss of each row. `train.loss` is looked up in `LOSSES`.

A loss owns the forward call and returns unreduced values, so that a new one needs no edit of the loop.
"""

from collections.abc import Callable

from torch import Tensor

from sliders.data.batch import Batch
from sliders.train.denoiser import AdaptedDenoiser

Loss = Callable[[AdaptedDenoiser, Batch], Tensor]


def reference(denoiser: AdaptedDenoiser, batch: Batch) -> Tensor:
    """Concept Sliders' image loss (Gandikota et al. 2024, arXiv:2311.12092, section 4.2): noise the image of scale s
    and, at multiplier s, predict that noise (or v, for a v-prediction model).

    Returns the mean squared error of each row, float32 [B].
    """
    schedule = denoiser.schedule
    noisy = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    target = schedule.target(batch.latents, batch.noise, batch.timesteps)
    return (denoiser.adapted(noisy, batch) - target).square().flatten(1).mean(1)


LOSSES: dict[str, Loss] = {"reference": reference}
