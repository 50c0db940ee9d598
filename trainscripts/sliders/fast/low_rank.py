"""A frozen layer and its LoRA as one autograd function, to save passes over memory.

As separate nodes they need two full-size additions: of their outputs in the forward pass, and of the gradients of their
common input in the backward pass. Here matrix products add in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sliders.adaptors.lora import LoRA
from sliders.fast.frozen import Frozen, convolution_backward
from sliders.fast.scaled_sum import add_scaled, scale
from sliders.fast.weights import Block, FastWeights


@dataclass(frozen=True, eq=False)
class FusedLoRA:
    """n frozen layers of one input, each with a LoRA; all LoRAs have one shape.

    downs: block of [r, in, …], ups: of [out, r, …].
    """

    frozen: Frozen
    downs: Block
    ups: Block
    weights: FastWeights  # of the network that the LoRAs belong to

    @classmethod
    def of(cls, kind: type[Frozen], adaptors: Sequence[LoRA], weights: FastWeights) -> "FusedLoRA":
        downs, ups = (weights.block([getattr(a, name) for a in adaptors]) for name in ("down", "up"))
        frozen = kind([a.base for a in adaptors], downs.weight)
        weights.keep(frozen.copies)
        return cls(frozen, downs, ups, weights)

    @property
    def count(self) -> int:
        return len(self.frozen.layers)

    @property
    def stacked_ups(self) -> Tensor:
        """[n, out, r]"""
        return self.ups.weight.detach().flatten(1).unflatten(0, (self.count, -1))

    def __call__(self, x: Tensor, scaling: Tensor) -> Tensor:
        """x [B, …, in] → [B, …, n · out], or images. scaling [B] or [1]: of the rows."""
        function = ConvWithLoRA if x.ndim == 4 and self.downs.weight.ndim == 4 else LinearWithLoRA
        return function.apply(x, scaling, self.downs.weight, self.ups.weight, self)


class LinearWithLoRA(torch.autograd.Function):
    """n linear layers of one x, such as a self-attention's query, key and value → their outputs [B, …, n · out].

    Each is x·Wᵀ + b + scaling · (x·downᵀ)·upᵀ. x [B, …, in] and the blocks have one dtype; scaling gets no gradient.
    The blocks' gradients go where they belong. Checkpointing may run `forward` twice before `backward`, so nothing that
    one of them computes is kept in `fused`.
    """

    @staticmethod
    def forward(ctx, x: Tensor, scaling: Tensor, downs: Tensor, ups: Tensor, fused: FusedLoRA) -> Tensor:
        out, projected, bias = fused.frozen.forward(x)
        outs, projections = (_side_by_side(t, fused.count) for t in (out, projected))
        hidden = add_scaled(outs, projections, fused.stacked_ups.mT, scaling, bias)
        ctx.save_for_backward(x, scaling, hidden)
        ctx.fused = fused
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scaling, hidden = ctx.saved_tensors
        fused, grad = ctx.fused, grad.contiguous()
        grads = _side_by_side(grad, fused.count)
        _put_product(fused, fused.ups, grads.mT, hidden)
        projected = _projected(grads, fused.stacked_ups)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = fused.frozen.backward(grad)
            grad_hidden = add_scaled(_rows(grad_x)[None], projected[None], fused.downs.weight.detach()[None], scaling)
        else:
            grad_hidden = scale(projected[None], scaling)
        _put_product(fused, fused.downs, grad_hidden[0].t(), _rows(x))
        return grad_x, None, None, None, None


class ConvWithLoRA(torch.autograd.Function):
    """conv(x, W) + b + scaling · up·conv(x, down) → [B, out, h', w'].

    x [B, in, h, w] and the blocks have one dtype; scaling gets no gradient. The blocks' gradients go where they belong.
    Images that are not channels-last cost copies.
    """

    @staticmethod
    def forward(ctx, x: Tensor, scaling: Tensor, down: Tensor, up: Tensor, fused: FusedLoRA) -> Tensor:
        out, projected, bias = fused.frozen.forward(x)
        pixels = _pixels(out)
        rows = _rows(pixels)
        hidden = add_scaled(rows[None], _rows(_pixels(projected))[None], fused.stacked_ups.mT, scaling, bias)
        ctx.save_for_backward(x, scaling, hidden[0])
        ctx.fused = fused
        if rows.data_ptr() != out.data_ptr():  # a copy, because the image is not channels-last
            out.copy_(_image(rows.view(pixels.shape)))
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scaling, hidden = ctx.saved_tensors
        fused = ctx.fused
        if x.stride(1) == 1 and grad.stride(1) != 1:  # or each use of its pixels as rows would copy it
            grad = grad.contiguous(memory_format=torch.channels_last)
        pixels = _pixels(grad)
        rows = _rows(pixels)
        gradients = fused.frozen.joint_gradient(rows, rows @ fused.stacked_ups[0], scaling)
        both, grad_hidden = (_image(t.view(*pixels.shape[:3], -1)) for t in gradients)
        _put_product(fused, fused.ups, rows.t(), hidden)

        def write_down(out: Tensor) -> None:
            weight, geometry = fused.downs.weight.detach(), fused.frozen.geometry
            out.copy_(convolution_backward(grad_hidden, x, weight, geometry, (False, True))[1])

        fused.weights.put(fused.downs, write_down, (grad_hidden, x))
        grad_x = fused.frozen.backward(both, x) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None, None


def _projected(grads: Tensor, ups: Tensor) -> Tensor:
    """grads [n, rows, out], ups [n, out, r] → their products [rows, n · r], side by side."""
    out = grads.new_empty((grads.shape[1], len(ups) * ups.shape[2]))
    torch.bmm(grads, ups, out=_side_by_side(out, len(ups)))
    return out


def _put_product(fused: FusedLoRA, block: Block, a: Tensor, b: Tensor) -> None:
    """The gradient of a block is a·b; batched if a and b are 3-D."""

    def write(out: Tensor) -> None:
        _multiply(a, b, out.view(*a.shape[:-1], b.shape[-1]))

    fused.weights.put(block, write, (a, b))


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a·b, in `out`'s dtype, float32, without rounding to that of a and b. Matrices, or batches [n, …] of them."""
    if out.is_cuda and a.dtype != out.dtype:
        multiply = torch.mm if a.ndim == 2 else torch.bmm
        multiply(a, b, out_dtype=out.dtype, out=out)
    else:  # only CUDA has kernels for two dtypes
        torch.matmul(a.to(out.dtype), b.to(out.dtype), out=out)


def _side_by_side(x: Tensor, count: int) -> Tensor:
    """[…, count · n] → [count, rows, n], a view"""
    return _rows(x).unflatten(1, (count, -1)).transpose(0, 1)


def _pixels(image: Tensor) -> Tensor:
    """[B, C, h, w] → [B, h, w, C], a view"""
    return image.permute(0, 2, 3, 1)


def _image(pixels: Tensor) -> Tensor:
    """[B, h, w, C] → [B, C, h, w], a view"""
    return pixels.permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """[…, n] → [rows, n]"""
    return x.reshape(-1, x.shape[-1])
