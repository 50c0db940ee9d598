"""LoRA (Hu et al. 2021, arXiv:2106.09685) for linear layers and convolutions."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sliders.adaptors.base import Adaptor, per_row, shape_of, zeros


class LoRA(Adaptor):
    """Adds scaling · up · down · x to a layer's output.

    down [rank, in], up [out, rank]. For a convolution, down [rank, in, k, k] has its kernel size, stride, padding and
    dilation, up is [out, rank, 1, 1], and the rank is at most min(in, out).
    """

    PARTS: ClassVar = {"lora_down.weight": "down", "lora_up.weight": "up"}
    SCALED = ("lora_up.weight",)

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, alpha: float, generator: torch.Generator | None = None):
        out, into, *kernel = shape_of(base)
        super().__init__(base, min(rank, into, out) if kernel else rank, alpha, generator)
        self.down = zeros(self.rank, into, *kernel)
        self.up = zeros(out, self.rank, *(1,) * len(kernel))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)

    def forward(self, x: Tensor, scaling: Tensor) -> Tensor:
        # multiplying the low-rank hidden state instead of the output saves passes over full-size tensors
        down, up = self.weight("down", x), self.weight("up", x)
        if self.geometry:
            return F.conv2d(per_row(F.conv2d(x, down, None, *self.geometry), scaling), up)
        return F.linear(per_row(F.linear(x, down), scaling), up)

    def difference(self) -> Tensor:
        product = self.up.flatten(1) @ self.down.flatten(1)
        return self.gain * product.view(len(self.up), *self.down.shape[1:])

    @classmethod
    def settings_of(cls, layers: Sequence[dict[str, Tensor]]) -> dict[str, int]:
        return {"rank": max(tensors["lora_down.weight"].shape[0] for tensors in layers)}
