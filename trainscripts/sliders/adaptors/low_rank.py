"""A frozen layer and its LoRA as one autograd function, to save passes over memory.

As separate nodes they need two full-size additions: of their outputs in the forward pass, and of the gradients of their
common input in the backward pass. Here matrix products add in place.

A sink knows weights by identity, so backward passes name them by `ctx.leaves`: what gradient checkpointing recomputes
is equal to them, not the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sliders.adaptors.gradient_sink import GradientSink
from sliders.compute.frozen import FrozenProduct, PlainConvolution, convolution_backward
from sliders.compute.neighbours import stacked
from sliders.compute.scaled_sum import add_scaled, scale


class LinearWithLoRA(torch.autograd.Function):
    """n linear layers of one x, such as a self-attention's query, key and value → their outputs [B, …, n · out].

    Each is x·Wᵀ + b + strength · (x·downᵀ)·upᵀ. All inputs have one dtype. x [B, …, in], frozen: of the n layers,
    strength [B, 1, …], which gets no gradient. weights: the n downs [r, in], then the n ups [out, r]. With a sink, their
    gradients go there. Each of the products is one kernel if the weights of a kind are neighbours in memory.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, frozen: FrozenProduct, strength: Tensor, sink: GradientSink | None, *weights: Tensor
    ) -> Tensor:
        downs, ups = _halves(weights)
        out, narrow, bias = frozen.forward_with(x, stacked(downs))
        outs, narrows = (_side_by_side(t, len(ups)) for t in (out, narrow))
        hidden = add_scaled(outs, narrows, _stack(ups).mT, strength.flatten(), bias)
        ctx.save_for_backward(x, strength, hidden, *weights)
        ctx.frozen, ctx.sink, ctx.leaves = frozen, sink, (downs, ups)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, strength, hidden, *weights = ctx.saved_tensors
        (downs, ups), strength = _halves(weights), strength.flatten()
        count, grad = len(ups), grad.contiguous()
        grads = _side_by_side(grad, count)
        grad_ups = _product(ctx.sink, ctx.leaves[1], grads.mT, hidden)
        narrow = _narrowed(grads, ups)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = ctx.frozen.backward(grad)
            grad_hidden = add_scaled(_rows(grad_x)[None], narrow[None], stacked(downs)[None], strength)
        else:
            grad_hidden = scale(narrow[None], strength)
        grad_downs = _product(ctx.sink, ctx.leaves[0], grad_hidden[0].t(), _rows(x))
        return grad_x, None, None, None, *_apart(grad_downs, count), *_apart(grad_ups, count)


class ConvWithLoRA(torch.autograd.Function):
    """conv(x, W) + b + strength · up·conv(x, down) → [B, out, h', w']. All inputs have one dtype.

    x [B, in, h, w], frozen: of one convolution, strength [B, 1, 1, 1], which gets no gradient, down [r, in, k, k], up
    [out, r, 1, 1]. With a sink, the gradients of down and up go there. Images that are not channels-last cost copies.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, frozen: PlainConvolution, strength: Tensor, sink: GradientSink | None, down: Tensor, up: Tensor
    ) -> Tensor:
        out, narrow, bias = frozen.forward_with(x, down)
        pixels = _pixels(out)
        rows = _rows(pixels)
        narrows, ups = _rows(_pixels(narrow))[None], up.flatten(1).t()[None]
        hidden = add_scaled(rows[None], narrows, ups, strength.flatten(), bias)
        ctx.save_for_backward(x, strength, hidden[0], down, up)
        ctx.frozen, ctx.sink, ctx.leaves = frozen, sink, (down, up)
        if rows.data_ptr() != out.data_ptr():  # a copy, because the image is not channels-last
            out.copy_(_image(rows.view(pixels.shape)))
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, strength, hidden, down, up = ctx.saved_tensors
        if x.stride(1) == 1 and grad.stride(1) != 1:  # or each use of its pixels as rows would copy it
            grad = grad.contiguous(memory_format=torch.channels_last)
        pixels = _pixels(grad)
        rows = _rows(pixels)
        gradients = ctx.frozen.joint_gradient(rows, rows @ up.flatten(1), strength.flatten())
        both, grad_hidden = (_image(t.view(*pixels.shape[:3], -1)) for t in gradients)
        grad_up = _product(ctx.sink, ctx.leaves[1:], rows.t(), hidden)
        grad_down = _convolved(ctx.sink, ctx.leaves[0], grad_hidden, x, ctx.frozen.geometry)
        grad_x = ctx.frozen.backward_with(both, grad_hidden, down, x) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None, grad_down, grad_up


def _narrowed(grads: Tensor, ups: Sequence[Tensor]) -> Tensor:
    """grads [n, rows, out], ups [out, r] → their products [rows, n · r], side by side."""
    out = grads.new_empty((grads.shape[1], len(ups) * ups[0].shape[1]))
    torch.bmm(grads, _stack(ups), out=_side_by_side(out, len(ups)))
    return out


def _product(sink: GradientSink | None, weights: Sequence[Tensor], a: Tensor, b: Tensor) -> Tensor | None:
    """a·b, the gradient of `weights` in 2-D, one after the other; batched if a and b are 3-D. None if it goes to a sink."""
    shape = (len(weights) * weights[0].shape[0], *weights[0].shape[1:])
    if sink is None:
        return (a @ b).view(shape)

    def write(out: Tensor) -> None:
        _multiply(a, b, out.view(*a.shape[:-1], b.shape[-1]))

    sink.put(weights, write, (a, b))
    return None


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a·b, in `out`'s dtype, float32, without rounding to that of a and b. Matrices, or batches [n, …] of them."""
    if out.is_cuda and a.dtype != out.dtype:
        multiply = torch.mm if a.ndim == 2 else torch.bmm
        multiply(a, b, out_dtype=out.dtype, out=out)
    else:  # only CUDA has kernels for two dtypes
        torch.matmul(a.to(out.dtype), b.to(out.dtype), out=out)


def _convolved(
    sink: GradientSink | None, down: Tensor, grad_hidden: Tensor, x: Tensor, geometry: tuple
) -> Tensor | None:
    """The gradient of a convolution's weight, or None if it goes to a sink."""

    def gradient() -> Tensor:
        return convolution_backward(grad_hidden, x, down, geometry, (False, True))[1]

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


def _pixels(image: Tensor) -> Tensor:
    """[B, C, h, w] → [B, h, w, C], a view"""
    return image.permute(0, 2, 3, 1)


def _image(pixels: Tensor) -> Tensor:
    """[B, h, w, C] → [B, C, h, w], a view"""
    return pixels.permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """[…, n] → [rows, n]"""
    return x.reshape(-1, x.shape[-1])
