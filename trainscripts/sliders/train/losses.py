"""Objectives: batch -> loss of each row. `train.loss` is looked up in `LOSSES`, under what the run trains on.

A loss owns the forward call and returns unreduced values, so that a new one needs no edit of the loop.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sliders.data.batch import ImageBatch
from sliders.data.contract import Batch
from sliders.data.text import TextBatch
from sliders.models.objective import broadcast_rows
from sliders.train.denoiser import AdaptedDenoiser

Loss = Callable[[AdaptedDenoiser, Batch], Tensor]


def reference(denoiser: AdaptedDenoiser, batch: ImageBatch) -> Tensor:
    """Concept Sliders' image loss (Gandikota et al. 2024, arXiv:2311.12092, section 4.2): noise the image of scale s
    and, at multiplier s, predict that noise (or v, for a v-prediction model).

    Returns the mean squared error of each row, float32 [B].
    """
    objective = denoiser.objective
    noisy = objective.add_noise(batch.latents, batch.noise, batch.timesteps)
    target = objective.target(batch.latents, batch.noise, batch.timesteps)
    return (denoiser.adapted(noisy, batch) - target).square().flatten(1).mean(1)


def text_reference(denoiser: AdaptedDenoiser, batch: TextBatch) -> Tensor:
    """Concept Sliders' text loss (Gandikota et al. 2024, arXiv:2311.12092, section 4.1), at any multiplier s: under
    `target`, predict what the frozen model predicts under `neutral`, moved by s · η · (under `positive` − under
    `unconditional`). The paper trains s = 1 alone.

    Returns the mean squared error of each row, float32 [B].
    """
    thrice = torch.cat([batch.noisy] * 3), batch.timesteps.repeat(3)
    positive, unconditional, neutral = denoiser.frozen(*thrice, batch.frozen).chunk(3)
    step = broadcast_rows(batch.scales * batch.strength, batch.noisy)
    target = neutral + step * (positive - unconditional)
    return (denoiser.adapted(batch.noisy, batch) - target).square().flatten(1).mean(1)


LOSSES: dict[str, dict[str, Loss]] = {"images": {"reference": reference}, "text": {"reference": text_reference}}
