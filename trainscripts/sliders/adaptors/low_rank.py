"""A frozen layer and its LoRA as one autograd function, to save passes over memory.

As separate nodes they need two full-size additions: of their outputs in the forward pass, and of the gradients of their
common input in the backward pass. Here matrix products add in place.

A sink knows weights by identity, so backward passes name them by `ctx.leaves`: what gradient checkpointing recomputes
is equal to them, not the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sliders.adaptors.gradient_sink import GradientSink
from sliders.compute.frozen import FrozenProduct
from sliders.compute.neighbours import stacked

aten = torch.ops.aten


class LinearWithLoRA(torch.autograd.Function):
    """x·Wᵀ + b + strength · (x·downᵀ)·upᵀ → [B, …, out]. All inputs have one dtype.

    x [B, …, in], frozen: of one layer, down [r, in], up [out, r], strength [B, 1, …], which gets no gradient. With a
    sink, the gradients of down and up go there.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, frozen: FrozenProduct, down: Tensor, up: Tensor, strength: Tensor, sink: GradientSink | None
    ) -> Tensor:
        out = frozen.forward(x)
        hidden = F.linear(x, down).mul_(strength)
        out.view(-1, out.shape[-1]).addmm_(_rows(hidden), up.t())
        ctx.save_for_backward(x, down, up, hidden, strength)
        ctx.frozen, ctx.sink, ctx.leaves = frozen, sink, (down, up)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, down, up, hidden, strength = ctx.saved_tensors
        grad = grad.contiguous()
        grad_up = _product(ctx.sink, ctx.leaves[1:], _rows(grad).t(), _rows(hidden))
        grad_hidden = F.linear(grad, up.t()).mul_(strength)
        grad_down = _product(ctx.sink, ctx.leaves[:1], _rows(grad_hidden).t(), _rows(x))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = ctx.frozen.backward(grad)
            grad_x.view(-1, grad_x.shape[-1]).addmm_(_rows(grad_hidden), down)
        return grad_x, None, grad_down, grad_up, None, None


class JointLinearWithLoRA(torch.autograd.Function):
    """n `LinearWithLoRA` of one x, such as a self-attention's query, key and value → their outputs [B, …, n · out].

    frozen: of n layers. weights: the n downs, then the n ups, each of one shape. Each of the products is one kernel if
    the weights of a kind are neighbours in memory.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, frozen: FrozenProduct, strength: Tensor, sink: GradientSink | None, *weights: Tensor
    ) -> Tensor:
        downs, ups = _halves(weights)
        out = frozen.forward(x)
        hidden = F.linear(x, stacked(downs)).mul_(strength)
        _side_by_side(out, len(ups)).baddbmm_(_side_by_side(hidden, len(ups)), _stack(ups).mT)
        ctx.save_for_backward(x, strength, hidden, *weights)
        ctx.frozen, ctx.sink, ctx.leaves = frozen, sink, (downs, ups)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, strength, hidden, *weights = ctx.saved_tensors
        downs, ups = _halves(weights)
        count, grad = len(ups), grad.contiguous()
        grads, hiddens = (_side_by_side(t, count) for t in (grad, hidden))
        grad_ups = _product(ctx.sink, ctx.leaves[1], grads.mT, hiddens)
        grad_hidden = torch.empty_like(hidden)
        torch.bmm(grads, _stack(ups), out=_side_by_side(grad_hidden, count))
        grad_hidden.mul_(strength)
        grad_downs = _product(ctx.sink, ctx.leaves[0], _rows(grad_hidden).t(), _rows(x))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = ctx.frozen.backward(grad)
            grad_x.view(-1, grad_x.shape[-1]).addmm_(_rows(grad_hidden), stacked(downs))
        return grad_x, None, None, None, *_apart(grad_downs, count), *_apart(grad_ups, count)


class ConvWithLoRA(torch.autograd.Function):
    """conv(x, W) + b + strength · up·conv(x, down) → [B, out, h', w']. All inputs have one dtype.

    x [B, in, h, w], W [out, in, k, k], b [out] or None, down [r, in, k, k], up [out, r, 1, 1], strength [B, 1, 1, 1].
    geometry: (stride, padding, dilation) of both convolutions. W, b and strength get no gradient. With a sink, the
    gradients of down and up go there.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, strength: Tensor,
        sink: GradientSink | None, geometry: tuple,
    ) -> Tensor:  # fmt: skip
        out = F.conv2d(x, weight, bias, *geometry)
        hidden = F.conv2d(x, down, None, *geometry).mul_(strength)
        out.flatten(2).baddbmm_(up.flatten(1).expand(len(x), -1, -1), hidden.flatten(2))
        ctx.save_for_backward(x, weight, down, up, hidden, strength)
        ctx.sink, ctx.leaves, ctx.geometry = sink, (down, up), geometry
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, hidden, strength = ctx.saved_tensors
        pixels = grad.permute(0, 2, 3, 1)  # [B, h, w, out], without a copy if grad is channels-last
        grad_hidden = F.linear(pixels, up.flatten(1).t()).permute(0, 3, 1, 2).mul_(strength)
        grad_up = _product(ctx.sink, ctx.leaves[1:], _rows(pixels).t(), _rows(hidden.permute(0, 2, 3, 1)))
        grad_down = _convolved(ctx.sink, ctx.leaves[0], grad_hidden, x, ctx.geometry)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _conv_backward(grad_hidden, x, down, ctx.geometry, (True, False))[0]
            grad_x = _conv_backward(grad, x, weight, ctx.geometry, (True, False))[0].add_(grad_x)
        return grad_x, None, None, grad_down, grad_up, None, None, None


def _product(sink: GradientSink | None, weights: Sequence[Tensor], a: Tensor, b: Tensor) -> Tensor | None:
    """a·b, the gradient of `weights` in 2-D, one after the other; batched if a and b are 3-D. None if it goes to a sink."""
    shape = (len(weights) * weights[0].shape[0], *weights[0].shape[1:])
    if sink is None:
        return (a @ b).view(shape)

    def write(out: Tensor) -> None:
        torch.matmul(a, b, out=out.view(*a.shape[:-1], b.shape[-1]))

    sink.put(weights, write, (a, b))
    return None


def _convolved(
    sink: GradientSink | None, down: Tensor, grad_hidden: Tensor, x: Tensor, geometry: tuple
) -> Tensor | None:
    """The gradient of a convolution's weight, or None if it goes to a sink."""

    def gradient() -> Tensor:
        return _conv_backward(grad_hidden, x, down, geometry, (False, True))[1]

    if sink is None:
        return gradient()
    sink.put((down,), lambda out: out.copy_(gradient()), (grad_hidden, x))
    return None


def _halves(weights: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return weights[: len(weights) // 2], weights[len(weights) // 2 :]


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """Parts [r, n] → [parts, r, n]"""
    return stacked(parts).view(len(parts), *parts[0].shape)


def _side_by_side(x: Tensor, count: int) -> Tensor:
    """[…, count · n] → [count, rows, n], a view"""
    return _rows(x).unflatten(1, (count, -1)).transpose(0, 1)


def _apart(stack: Tensor | None, count: int) -> Sequence[Tensor | None]:
    return [None] * count if stack is None else stack.chunk(count)


def _rows(x: Tensor) -> Tensor:
    """[…, n] → [rows, n]"""
    return x.reshape(-1, x.shape[-1])


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple, wanted: tuple[bool, bool]) -> tuple:
    """(gradient of x, gradient of the weight), those that are wanted."""
    stride, padding, dilation = geometry
    return aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], 1, [*wanted, False]
    )
