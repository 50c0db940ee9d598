"""Loss and gradient of a batch: kernel by kernel, or on CUDA by replaying a graph captured once per batch shape."""

from collections.abc import Callable

import torch
from torch import Tensor

from sliders.adaptors.flat_weights import FlatWeights
from sliders.data.batch import Batch
from sliders.fast.graphs import CapturedCalls


class Gradients:
    """`gradients(batch)` writes the gradient of the loss to `weights.master.grad`. It returns the loss, 0-dim float32."""

    def __init__(self, forward: Callable[[Batch], Tensor], weights: FlatWeights):
        self.weights = weights
        self._forward = forward

    def __call__(self, batch: Batch) -> Tensor:
        loss = self._forward(batch)
        loss.backward()
        self.weights.gather_gradients()
        return loss.detach()


def captured(gradients: Gradients, device: torch.device) -> CapturedCalls:
    """`gradients` through CUDA graphs."""
    return CapturedCalls(gradients, device, "training", gradients.weights.drop_gradients)
