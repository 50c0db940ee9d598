"""The whole difference of a layer's weight, without a low-rank factorisation."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from sliders.adaptors.base import shape_of, zeros
from sliders.adaptors.delta import DeltaAdaptor


class Full(DeltaAdaptor):
    """ΔW = diff, of the layer's own shape. Rank and alpha do not apply, and files contain neither. Biases stay frozen."""

    PARTS: ClassVar = {"diff": "diff"}
    SCALED = ("diff",)
    HAS_ALPHA = False

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, alpha: float, generator: torch.Generator | None = None):
        super().__init__(base, None, alpha, generator)
        self.diff = zeros(*shape_of(base))

    def delta(self, x: Tensor) -> Tensor:
        return self.weight("diff", x)
