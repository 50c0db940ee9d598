"""Layer norm fused with the residual addition before it, and with the sum of gradients behind it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 2  # of a row's program: more would wait for each other


class AddLayerNorm(torch.autograd.Function):
    """x, y [… , n] → x + y and its layer norm, each [… , n]. weight, bias [n]. Ba et al. 2016, arXiv:1607.06450.

    y may be None: then x and its layer norm. The backward kernel adds the gradients that arrive through both results.
    """

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        width = x.shape[-1]
        normal, total = torch.empty_like(x), x if y is None else torch.empty_like(x)
        mean, rstd = x.new_empty((2, x.numel() // width), dtype=torch.float32)
        if y is not None:
            y = y.reshape(-1, width)
            y = y if y.stride(1) == 1 else y.contiguous()
        tensors = (x, y, weight, bias, total, normal, mean, rstd)
        sizes = (0 if y is None else y.stride(0), width, eps, triton.next_power_of_2(width))
        _add_layer_norm[(len(mean),)](*tensors, *sizes, num_warps=WARPS)
        ctx.save_for_backward(total, weight, mean, rstd)
        return total, normal

    @staticmethod
    def backward(ctx, grad_total: Tensor, grad_normal: Tensor) -> tuple[Tensor | None, ...]:
        total, weight, mean, rstd = ctx.saved_tensors
        width = total.shape[-1]
        grad = torch.empty_like(total)
        tensors = (total, grad_total.contiguous(), grad_normal.contiguous(), weight, mean, rstd, grad)
        _add_layer_norm_backward[(len(mean),)](*tensors, width, triton.next_power_of_2(width), num_warps=WARPS)
        return grad, grad if ctx.needs_input_grad[1] else None, None, None, None


@triton.jit
def _add_layer_norm(
    x, y, weight, bias, total, normal, mean, rstd, y_stride, width, eps, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    offset = row.to(tl.int64) * width + columns
    value = tl.load(x + offset, mask, other=0.0).to(tl.float32)
    if y is not None:
        value += tl.load(y + row.to(tl.int64) * y_stride + columns, mask, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + offset, rounded, mask)
        value = rounded.to(tl.float32)
    centre = tl.sum(value, 0) / width
    deviation = tl.where(mask, value - centre, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(deviation * deviation, 0) / width + eps)
    gain = tl.load(weight + columns, mask, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask, other=0.0).to(tl.float32)
    tl.store(normal + offset, (deviation * scale * gain + shift).to(normal.dtype.element_ty), mask)
    tl.store(mean + row, centre)
    tl.store(rstd + row, scale)


@triton.jit
def _add_layer_norm_backward(
    total, grad_total, grad_normal, weight, mean, rstd, grad, width, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    offset = row.to(tl.int64) * width + columns
    value = tl.load(total + offset, mask, other=0.0).to(tl.float32)
    gradient = tl.load(grad_normal + offset, mask, other=0.0).to(tl.float32)
    passed = tl.load(grad_total + offset, mask, other=0.0).to(tl.float32)  # here, to arrive during the sums
    gain = tl.load(weight + columns, mask, other=0.0).to(tl.float32)
    scale = tl.load(rstd + row)
    normal = tl.where(mask, (value - tl.load(mean + row)) * scale, 0.0)
    upstream = gradient * gain
    average = tl.sum(upstream, 0) / width
    slope = tl.sum(upstream * normal, 0) / width
    result = passed + scale * (upstream - average - normal * slope)
    tl.store(grad + offset, result.to(grad.dtype.element_ty), mask)
