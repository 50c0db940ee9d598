"""LoHa: the Hadamard product of two low-rank matrices (Hyeon-Woo et al. 2022, FedPara, arXiv:2108.06098)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sliders.adaptors.base import needs_plain_operations, shape_of, with_gain_folded, zeros
from sliders.adaptors.delta import DeltaAdaptor


class LoHa(DeltaAdaptor):
    """ΔW = (w1_a · w1_b) ⊙ (w2_a · w2_b), whose rank is up to rank².

    w1_a, w2_a [out, rank], w1_b, w2_b [rank, in], or [rank, in · k · k] for a convolution.
    """

    PARTS: ClassVar = {"hada_w1_a": "w1_a", "hada_w1_b": "w1_b", "hada_w2_a": "w2_a", "hada_w2_b": "w2_b"}
    SCALED = ("hada_w2_a",)

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, alpha: float, generator: torch.Generator | None = None):
        super().__init__(base, rank, alpha, generator)
        self.shape = shape_of(base)
        out, *rest = self.shape
        self.w1_a, self.w1_b = zeros(out, rank), zeros(rank, math.prod(rest))
        self.w2_a, self.w2_b = zeros(out, rank), zeros(rank, math.prod(rest))
        for weight, std in ((self.w1_a, 0.1), (self.w1_b, 1.0), (self.w2_b, 1.0)):  # as LyCORIS does
            nn.init.normal_(weight, std=std, generator=generator)

    def delta(self, x: Tensor) -> Tensor:
        weights = [self.weight(name, x) for name in self.PARTS.values()]
        product = _product if needs_plain_operations(x) else _HadamardProduct.apply
        return product(*weights).view(self.shape)

    @classmethod
    def for_files(cls, tensors: dict[str, Tensor], base: nn.Module) -> dict[str, Tensor]:
        return with_gain_folded(tensors, tensors["hada_w1_b"].shape[0])

    @classmethod
    def settings_of(cls, layers: Sequence[dict[str, Tensor]]) -> dict[str, int]:
        return {"rank": max(tensors["hada_w1_b"].shape[0] for tensors in layers)}


def _product(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Tensor:
    return (w1_a @ w1_b) * (w2_a @ w2_b)


class _HadamardProduct(torch.autograd.Function):
    """`_product`, which keeps no full-size matrix for the backward pass: each would take as much memory as the layer."""

    @staticmethod
    def forward(ctx, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Tensor:
        ctx.save_for_backward(w1_a, w1_b, w2_a, w2_b)
        return _product(w1_a, w1_b, w2_a, w2_b)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        w1_a, w1_b, w2_a, w2_b = ctx.saved_tensors
        first, second = grad * (w2_a @ w2_b), grad * (w1_a @ w1_b)
        return first @ w1_b.t(), w1_a.t() @ first, second @ w2_b.t(), w2_a.t() @ second
