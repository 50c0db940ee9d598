"""A frozen layer and its LoRA as one autograd function, to save passes over memory.

As separate nodes they need two full-size additions: of their outputs in the forward pass, and of the gradients of their
common input in the backward pass. Here matrix products add in place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten


class LinearWithLoRA(torch.autograd.Function):
    """x·Wᵀ + b + strength · (x·downᵀ)·upᵀ → [B, …, out]. All inputs have one dtype.

    x [B, …, in], W [out, in], b [out] or None, down [r, in], up [out, r], strength [B, 1, …]. W, b and strength get no
    gradient.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, strength: Tensor
    ) -> Tensor:
        out = F.linear(x, weight, bias)
        hidden = F.linear(x, down).mul_(strength)
        out.view(-1, out.shape[-1]).addmm_(_rows(hidden), up.t())
        ctx.save_for_backward(x, weight, down, up, hidden, strength)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, hidden, strength = ctx.saved_tensors
        grad = grad.contiguous()
        grad_hidden = F.linear(grad, up.t()).mul_(strength)
        grad_up = _rows(grad).t() @ _rows(hidden)
        grad_down = _rows(grad_hidden).t() @ _rows(x)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = F.linear(grad, weight.t())
            grad_x.view(-1, grad_x.shape[-1]).addmm_(_rows(grad_hidden), down)
        return grad_x, None, None, grad_down, grad_up, None


class JointLinearWithLoRA(torch.autograd.Function):
    """Several `LinearWithLoRA` of one x, without bias, such as a self-attention's query, key and value.

    weights: W, down and up of each layer in turn; all downs have the same shape. The products with down are one matrix
    product, and the gradients of x are added in place.
    """

    @staticmethod
    def forward(ctx, x: Tensor, strength: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        bases, downs, ups = weights[0::3], weights[1::3], weights[2::3]
        hidden = F.linear(x, _stacked(downs)).mul_(strength)
        outs = tuple(F.linear(x, base) for base in bases)
        for out, up, part in zip(outs, ups, _rows(hidden).chunk(len(ups), 1), strict=True):
            out.view(-1, out.shape[-1]).addmm_(part, up.t())
        ctx.save_for_backward(x, strength, hidden, *weights)
        return outs

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, strength, hidden, *weights = ctx.saved_tensors
        bases, downs, ups = weights[0::3], weights[1::3], weights[2::3]
        count = len(ups)
        grads = [_rows(grad) for grad in grads]
        grad_hidden = torch.empty_like(hidden)
        for grad, up, part in zip(grads, ups, _rows(grad_hidden).chunk(count, 1), strict=True):
            torch.mm(grad, up, out=part)
        grad_hidden = _rows(grad_hidden.mul_(strength))
        grad_downs = (grad_hidden.t() @ _rows(x)).chunk(count)
        grad_ups = [grad.t() @ part for grad, part in zip(grads, _rows(hidden).chunk(count, 1), strict=True)]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grads[0] @ bases[0]
            for grad, base in zip(grads[1:], bases[1:], strict=True):
                grad_x.addmm_(grad, base)
            grad_x = grad_x.addmm_(grad_hidden, _stacked(downs)).view_as(x)
        return grad_x, None, *(g for d, u in zip(grad_downs, grad_ups, strict=True) for g in (None, d, u))


class ConvWithLoRA(torch.autograd.Function):
    """conv(x, W) + b + strength · up·conv(x, down) → [B, out, h', w']. All inputs have one dtype.

    x [B, in, h, w], W [out, in, k, k], b [out] or None, down [r, in, k, k], up [out, r, 1, 1], strength [B, 1, 1, 1].
    geometry: (stride, padding, dilation) of both convolutions. W, b and strength get no gradient.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, strength: Tensor, geometry: tuple
    ) -> Tensor:
        out = F.conv2d(x, weight, bias, *geometry)
        hidden = F.conv2d(x, down, None, *geometry).mul_(strength)
        out.flatten(2).baddbmm_(up.flatten(1).expand(len(x), -1, -1), hidden.flatten(2))
        ctx.save_for_backward(x, weight, down, up, hidden, strength)
        ctx.geometry = geometry
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, hidden, strength = ctx.saved_tensors
        pixels = grad.permute(0, 2, 3, 1)  # [B, h, w, out], without a copy if grad is channels-last
        grad_hidden = F.linear(pixels, up.flatten(1).t()).permute(0, 3, 1, 2).mul_(strength)
        grad_up = (_rows(pixels).t() @ _rows(hidden.permute(0, 2, 3, 1))).view_as(up)
        need_x = ctx.needs_input_grad[0]
        grad_x, grad_down, _ = _conv_backward(grad_hidden, x, down, ctx.geometry, need_x, True)
        if need_x:
            grad_x = _conv_backward(grad, x, weight, ctx.geometry, True, False)[0].add_(grad_x)
        return grad_x, None, None, grad_down, grad_up, None, None


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Parts [r, n] → [parts · r, n]. A view if they are adjacent in memory, as `FlatWeights` arranges them."""
    first, size = parts[0], parts[0].numel() * parts[0].element_size()
    adjacent = all(p.is_contiguous() and p.data_ptr() == first.data_ptr() + i * size for i, p in enumerate(parts))
    if adjacent and first.untyped_storage().data_ptr() == parts[-1].untyped_storage().data_ptr():
        return first.detach().as_strided((len(parts) * first.shape[0], first.shape[1]), first.stride())
    return torch.cat(parts)


def _rows(x: Tensor) -> Tensor:
    """[…, n] → [rows, n]"""
    return x.reshape(-1, x.shape[-1])


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple, need_x: bool, need_weight: bool) -> tuple:
    stride, padding, dilation = geometry
    return aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], 1, [need_x, need_weight, False]
    )
