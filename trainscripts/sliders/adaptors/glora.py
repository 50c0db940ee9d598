"""GLoRA without its terms for the bias (Chavan et al. 2023, arXiv:2306.07967), as LyCORIS defines it."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sliders.adaptors.base import ALPHA, Adaptor, per_row, shape_of, zeros


class GLoRA(Adaptor):
    """ΔW = W · a1 · a2 + b1 · b2, with W the frozen weight.

    a1 [in, rank], a2 [rank, in], b1 [out, rank], b2 [rank, in]. For a convolution all are 1×1 except b2, which has its
    kernel size, stride, padding and dilation. The rank is less than in and out, because ComfyUI and Forge read square
    matrices in the order of LyCORIS' first version.
    """

    PARTS: ClassVar = {"a1.weight": "a1", "a2.weight": "a2", "b1.weight": "b1", "b2.weight": "b2"}
    SCALED = ("a1.weight", "b1.weight")

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, alpha: float, generator: torch.Generator | None = None):
        out, into, *kernel = shape_of(base)
        rank = max(1, min(rank, into - 1, out - 1))
        super().__init__(base, rank, alpha, generator)
        one = (1,) * len(kernel)
        self.a1, self.a2 = zeros(into, rank, *one), zeros(rank, into, *one)
        self.b1, self.b2 = zeros(out, rank, *one), zeros(rank, into, *kernel)
        for weight in (self.a1, self.b1):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)

    def adapted(self, base_forward: Callable[[Tensor], Tensor], x: Tensor, scaling: Tensor) -> Tensor:
        """W · (x + scaling · a1 · a2 · x) + scaling · b1 · b2 · x, with one pass through the layer."""
        a1, a2, b1, b2 = (self.weight(name, x) for name in self.PARTS.values())
        if self.geometry is None:
            moved = x + F.linear(per_row(F.linear(x, a2), scaling), a1)
            return base_forward(moved) + F.linear(per_row(F.linear(x, b2), scaling), b1)
        moved = x + F.conv2d(per_row(F.conv2d(x, a2), scaling), a1)
        return base_forward(moved) + F.conv2d(per_row(F.conv2d(x, b2, None, *self.geometry), scaling), b1)

    def difference(self) -> Tensor:
        weight, mixing = self.base.weight.float(), self.a1.flatten(1) @ self.a2.flatten(1)
        product = (self.b1.flatten(1) @ self.b2.flatten(1)).view(weight.shape)
        return self.gain * (torch.einsum("oc...,ci->oi...", weight, mixing) + product)

    @classmethod
    def is_zero(cls, tensors: dict[str, Tensor]) -> bool:
        """Of two sums, each with its own factors and the same alpha."""
        letters = {part[0] for part in cls.PARTS}
        sums = [{p: t for p, t in tensors.items() if p == ALPHA or p.startswith(letter)} for letter in letters]
        return all(super(GLoRA, cls).is_zero(factors) for factors in sums)

    @classmethod
    def settings_of(cls, layers: Sequence[dict[str, Tensor]]) -> dict[str, int]:
        return {"rank": max(tensors["a2.weight"].shape[0] for tensors in layers)}
