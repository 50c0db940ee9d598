"""The frozen model with its adaptors, as a loss calls it."""

import torch
from torch import Tensor

from sliders.batch import Batch
from sliders.models.schedule import NoiseSchedule
from sliders.models.sdxl import SDXL
from sliders.network import AdaptorNetwork


class AdaptedDenoiser:
    """Predictions for noisy latents [B, 4, h, w] float32 under a batch's timesteps, prompts and time ids.

    A loss that needs both asks for `base` first: the multipliers of `adapted` must stay set until its backward is done.
    """

    def __init__(self, model: SDXL, network: AdaptorNetwork):
        self._model, self._network = model, network

    @property
    def schedule(self) -> NoiseSchedule:
        return self._model.schedule

    @torch.no_grad()
    def base(self, noisy: Tensor, batch: Batch) -> Tensor:
        """What the model predicts without adaptors, [B, 4, h, w] float32."""
        self._network.set_multipliers(None)
        return self._predict(noisy, batch)

    def adapted(self, noisy: Tensor, batch: Batch) -> Tensor:
        """What it predicts with each row at its own scale, [B, 4, h, w] float32."""
        self._network.set_multipliers(batch.scales)
        return self._predict(noisy, batch)

    def _predict(self, noisy: Tensor, batch: Batch) -> Tensor:
        return self._model.denoise(noisy, batch.timesteps, batch.tokens, batch.pooled, batch.time_ids)
