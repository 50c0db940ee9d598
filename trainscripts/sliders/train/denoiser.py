"""The frozen model with its adaptors, as a loss calls it."""

import torch
from torch import Tensor

from sliders.adaptors.network import AdaptorNetwork
from sliders.data.contract import Batch
from sliders.models.base import Conditioning, Model
from sliders.models.objective import Objective


class AdaptedDenoiser:
    """Predictions for noisy latents [B, c, h, w] float32.

    A loss that calls both methods calls `adapted` last: the multipliers must stay set until its backward pass is done.
    """

    def __init__(self, model: Model, network: AdaptorNetwork):
        self._model, self._network = model, network

    @property
    def objective(self) -> Objective:
        return self._model.objective

    def adapted(self, noisy: Tensor, batch: Batch) -> Tensor:
        """The prediction at the batch's timesteps, with each row at its own scale, float32 [B, c, h, w].

        The scales stay set: gradient checkpointing runs the forward again during backward.
        """
        self._network.set_multipliers(batch.scales)
        return self._model.denoise(noisy, batch.timesteps, batch.conditioning)

    @torch.no_grad()
    def frozen(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The prediction of the model without adaptors, float32 [B, c, h, w]. No gradient flows through it."""
        self._network.set_multipliers(None)
        return self._model.denoise(noisy, timesteps, conditioning)
