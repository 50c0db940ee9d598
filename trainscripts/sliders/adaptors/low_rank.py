"""A frozen layer and its low-rank share as one differentiable function, with as few passes over memory as it takes.

Written as two autograd nodes, layer and share cost an addition of full-size activations forwards and another, of the
gradients of their common input, backwards. Here matrix products add in place.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten


class LinearWithLoRA(torch.autograd.Function):
    """x·Wᵀ + b + scale · (x·downᵀ)·upᵀ.  x [B, …, in], down [r, in], up [out, r], scale [B, 1, …], all of one dtype.

    W, b and scale are constants: no gradient is computed for them.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
        out = F.linear(x, weight, bias)
        hidden = F.linear(x, down).mul_(scale)
        out.view(-1, out.shape[-1]).addmm_(_rows(hidden), up.t())
        ctx.save_for_backward(x, weight, down, up, hidden, scale)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, hidden, scale = ctx.saved_tensors
        grad = grad.contiguous()
        grad_hidden = F.linear(grad, up.t()).mul_(scale)
        grad_up = _rows(grad).t() @ _rows(hidden)
        grad_down = _rows(grad_hidden).t() @ _rows(x)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = F.linear(grad, weight.t())
            grad_x.view(-1, grad_x.shape[-1]).addmm_(_rows(grad_hidden), down)
        return grad_x, None, None, grad_down, grad_up, None


class ConvWithLoRA(torch.autograd.Function):
    """conv(x, W) + b + scale · up·conv(x, down).  x [B, in, h, w], down [r, in, k, k], up [out, r, 1, 1], scale [B, 1, 1, 1].

    `geometry`: (stride, padding, dilation) of both convolutions. W, b and scale are constants.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: Tensor, geometry: tuple
    ) -> Tensor:
        out = F.conv2d(x, weight, bias, *geometry)
        hidden = F.conv2d(x, down, None, *geometry).mul_(scale)
        out.flatten(2).baddbmm_(up.flatten(1).expand(len(x), -1, -1), hidden.flatten(2))
        ctx.save_for_backward(x, weight, down, up, hidden, scale)
        ctx.geometry = geometry
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, hidden, scale = ctx.saved_tensors
        pixels = grad.permute(0, 2, 3, 1)  # [B, h, w, out], no copy where the channels lie last
        grad_hidden = F.linear(pixels, up.flatten(1).t()).permute(0, 3, 1, 2).mul_(scale)
        grad_up = (_rows(pixels).t() @ _rows(hidden.permute(0, 2, 3, 1))).view_as(up)
        need_x = ctx.needs_input_grad[0]
        grad_x, grad_down, _ = _conv_backward(grad_hidden, x, down, ctx.geometry, need_x, True)
        if need_x:
            grad_x = _conv_backward(grad, x, weight, ctx.geometry, True, False)[0].add_(grad_x)
        return grad_x, None, None, grad_down, grad_up, None, None


def _rows(x: Tensor) -> Tensor:
    """[…, n] → [rows, n]"""
    return x.reshape(-1, x.shape[-1])


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple, need_x: bool, need_weight: bool) -> tuple:
    stride, padding, dilation = geometry
    return aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], 1, [need_x, need_weight, False]
    )
