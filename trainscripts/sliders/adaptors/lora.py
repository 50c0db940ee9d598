"""LoRA (Hu et al. 2021, arXiv:2106.09685) for linear layers and convolutions."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sliders.adaptors.base import Adaptor, Joint, needs_plain_operations, per_row, shape_of, zeros
from sliders.adaptors.low_rank import ConvWithLoRA, JointLinearWithLoRA, LinearWithLoRA
from sliders.compute.frozen import frozen_product, joint_product


class LoRA(Adaptor):
    """Adds strength · up · down · x to a layer's output.

    down [rank, in], up [out, rank]. For a convolution, down [rank, in, k, k] has its kernel size, stride, padding and
    dilation, up is [out, rank, 1, 1], and the rank is at most min(in, out).
    """

    PARTS: ClassVar = {"lora_down.weight": "down", "lora_up.weight": "up"}
    SCALED = ("lora_up.weight",)

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, alpha: float, generator: torch.Generator | None = None):
        out, into, *kernel = shape_of(base)
        super().__init__(base, min(rank, into, out) if kernel else rank, alpha, generator)
        self.frozen = frozen_product([base])  # None for convolutions
        is_plain_conv = type(base) is nn.Conv2d and "forward" not in base.__dict__
        self.plain = is_plain_conv or self.frozen is not None
        self.down = zeros(self.rank, into, *kernel)
        self.up = zeros(out, self.rank, *(1,) * len(kernel))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)

    def forward(self, x: Tensor, strength: Tensor) -> Tensor:
        # multiplying the low-rank hidden state instead of the output saves passes over full-size tensors
        down, up, strength = self.weight("down", x), self.weight("up", x), per_row(strength, x)
        if self.geometry:
            return F.conv2d(F.conv2d(x, down, None, *self.geometry) * strength, up)
        return F.linear(F.linear(x, down) * strength, up)

    def adapted(self, base_forward: Callable[[Tensor], Tensor], x: Tensor, strength: Tensor) -> Tensor:
        """Computes layer and LoRA in one function, unless the layer is of another kind or has another adaptor."""
        if not self.plain or needs_plain_operations(x):
            return super().adapted(base_forward, x, strength)
        weights = (self.weight("down", x), self.weight("up", x), per_row(strength, x), self.sink)
        if self.geometry:
            return ConvWithLoRA.apply(x, self.base.weight, self.base.bias, *weights, self.geometry)
        return LinearWithLoRA.apply(x, self.frozen, *weights)

    @classmethod
    def join(cls, adaptors: Sequence["LoRA"]) -> Joint | None:
        """Joins LoRAs of the same shape and gain on linear layers of the same kind and shape."""
        if any(a.frozen is None for a in adaptors) or len({(a.gain, a.down.shape) for a in adaptors}) != 1:
            return None
        frozen = joint_product([a.frozen for a in adaptors])
        if frozen is None:
            return None

        def joint(x: Tensor, strength: Tensor) -> tuple[Tensor, ...]:
            if needs_plain_operations(x):
                return tuple(a.base(x) for a in adaptors)  # their forward is already adapted
            weights = [a.weight(name, x) for name in ("down", "up") for a in adaptors]
            out = JointLinearWithLoRA.apply(x, frozen, per_row(strength, x), adaptors[0].sink, *weights)
            return out.chunk(len(adaptors), -1)

        return joint

    @classmethod
    def settings_of(cls, layers: Sequence[dict[str, Tensor]]) -> dict[str, int]:
        return {"rank": max(tensors["lora_down.weight"].shape[0] for tensors in layers)}
