"""LoRA (Hu et al. 2021, arXiv:2106.09685) for linear layers and convolutions."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sliders.adaptors.base import Adaptor, Joint, needs_plain_operations, per_row, shape_of, zeros
from sliders.adaptors.low_rank import ConvWithLoRA, LinearWithLoRA
from sliders.compute.frozen import Frozen, frozen_layer, joint_product


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
        self.frozen = frozen_layer(base)
        self._together: tuple[Frozen | None, Sequence[LoRA]] = (self.frozen, (self,))  # computed by one product
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
        if self.frozen is None or needs_plain_operations(x):
            return super().adapted(base_forward, x, strength)
        function = ConvWithLoRA if self.geometry else LinearWithLoRA
        weights = self.weight("down", x), self.weight("up", x)
        return function.apply(x, self.frozen, per_row(strength, x), self.sink, *weights)

    def duplicates(self) -> list[tuple[Tensor, Tensor]]:
        """`down` below the frozen weight, so that one product reads both."""
        frozen, adaptors = self._together
        downs = [a._copies.get("down", a.down.detach()) for a in adaptors]
        room = frozen and frozen.make_room(sum(len(down) for down in downs))
        return [] if room is None else list(zip(room.split([len(down) for down in downs]), downs, strict=True))

    @classmethod
    def join(cls, adaptors: Sequence["LoRA"]) -> Joint | None:
        """Joins LoRAs of the same shape and gain on linear layers of the same kind and shape."""
        if any(a.frozen is None for a in adaptors) or len({(a.gain, a.down.shape) for a in adaptors}) != 1:
            return None
        frozen = joint_product([a.frozen for a in adaptors])
        if frozen is None:
            return None
        for adaptor in adaptors:
            adaptor._together = (None, ())
        adaptors[0]._together = (frozen, adaptors)

        def joint(x: Tensor, strength: Tensor) -> tuple[Tensor, ...]:
            if needs_plain_operations(x):
                return tuple(a.base(x) for a in adaptors)  # their forward is already adapted
            weights = [a.weight(name, x) for name in ("down", "up") for a in adaptors]
            out = LinearWithLoRA.apply(x, frozen, per_row(strength, x), adaptors[0].sink, *weights)
            return out.chunk(len(adaptors), -1)

        return joint

    @classmethod
    def settings_of(cls, layers: Sequence[dict[str, Tensor]]) -> dict[str, int]:
        return {"rank": max(tensors["lora_down.weight"].shape[0] for tensors in layers)}
