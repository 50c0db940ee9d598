"""Layer norm fused with the residual addition before it, and with the sum of gradients behind it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sliders.fast.kernels.row_factors import batch_stride, dense_rows, tokens_of, warps_of


class AddLayerNorm(torch.autograd.Function):
    """x, y [B, … , n] → x + gate · y and its layer norm · (weight + more) + bias, each [B, … , n].

    weight, bias and gate: [n], or [B, n] for each row of the batch; gate may be None for 1. y may be None: then x and its
    norm. The backward kernel adds the gradients that arrive through both results.

    Ba et al. 2016, arXiv:1607.06450. With `more` 1 and values for each row, adaptive layer norm: Peebles & Xie 2022,
    arXiv:2212.09748.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, eps: float, gate: Tensor | None = None,
        more: float = 0.0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        x = x.contiguous()
        width = x.shape[-1]
        normal, total = torch.empty_like(x), x if y is None else torch.empty_like(x)
        mean, rstd = x.new_empty((2, x.numel() // width), dtype=torch.float32)
        y = None if y is None else dense_rows(y)
        tensors = (x, y, weight, bias, gate, total, normal, mean, rstd)
        strides = (0 if y is None else y.stride(0), *map(batch_stride, (weight, bias, gate)))
        block = triton.next_power_of_2(width)
        sizes = (tokens_of(x), width, more, eps, block)
        _add_layer_norm[(len(mean),)](*tensors, *strides, *sizes, num_warps=warps_of(block))
        ctx.save_for_backward(total, weight, gate, mean, rstd)
        ctx.more = more
        return total, normal

    @staticmethod
    def backward(ctx, grad_total: Tensor, grad_normal: Tensor) -> tuple[Tensor | None, ...]:
        total, weight, gate, mean, rstd = ctx.saved_tensors
        width = total.shape[-1]
        grad, adds = torch.empty_like(total), ctx.needs_input_grad[1]
        grad_y = torch.empty_like(total) if adds and gate is not None else None
        tensors = (total, grad_total.contiguous(), grad_normal.contiguous(), weight, gate, mean, rstd, grad, grad_y)
        block = triton.next_power_of_2(width)
        sizes = (batch_stride(weight), batch_stride(gate), tokens_of(total), width, ctx.more, block)
        _add_layer_norm_backward[(len(mean),)](*tensors, *sizes, num_warps=warps_of(block))
        return grad, (grad if gate is None else grad_y) if adds else None, None, None, None, None, None


@triton.jit
def _add_layer_norm(
    x, y, weight, bias, gate, total, normal, mean, rstd, y_stride, weight_batch, bias_batch, gate_batch,
    tokens, width, more, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    batch = row // tokens
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    offset = row.to(tl.int64) * width + columns
    value = tl.load(x + offset, mask, other=0.0).to(tl.float32)
    if y is not None:
        addend = tl.load(y + row.to(tl.int64) * y_stride + columns, mask, other=0.0).to(tl.float32)
        if gate is not None:
            addend *= tl.load(gate + batch * gate_batch + columns, mask, other=0.0).to(tl.float32)
        rounded = (value + addend).to(total.dtype.element_ty)
        tl.store(total + offset, rounded, mask)
        value = rounded.to(tl.float32)
    centre = tl.sum(value, 0) / width
    deviation = tl.where(mask, value - centre, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(deviation * deviation, 0) / width + eps)
    gain = tl.load(weight + batch * weight_batch + columns, mask, other=0.0).to(tl.float32) + more
    shift = tl.load(bias + batch * bias_batch + columns, mask, other=0.0).to(tl.float32)
    tl.store(normal + offset, (deviation * scale * gain + shift).to(normal.dtype.element_ty), mask)
    tl.store(mean + row, centre)
    tl.store(rstd + row, scale)


@triton.jit
def _add_layer_norm_backward(
    total, grad_total, grad_normal, weight, gate, mean, rstd, grad, grad_y, weight_batch, gate_batch,
    tokens, width, more, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    batch = row // tokens
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    offset = row.to(tl.int64) * width + columns
    value = tl.load(total + offset, mask, other=0.0).to(tl.float32)
    gradient = tl.load(grad_normal + offset, mask, other=0.0).to(tl.float32)
    passed = tl.load(grad_total + offset, mask, other=0.0).to(tl.float32)  # here, to arrive during the sums
    gain = tl.load(weight + batch * weight_batch + columns, mask, other=0.0).to(tl.float32) + more
    scale = tl.load(rstd + row)
    normal = tl.where(mask, (value - tl.load(mean + row)) * scale, 0.0)
    upstream = gradient * gain
    average = tl.sum(upstream, 0) / width
    slope = tl.sum(upstream * normal, 0) / width
    result = passed + scale * (upstream - average - normal * slope)
    tl.store(grad + offset, result.to(grad.dtype.element_ty), mask)
    if grad_y is not None:
        factor = tl.load(gate + batch * gate_batch + columns, mask, other=0.0).to(tl.float32)
        tl.store(grad_y + offset, (result * factor).to(grad_y.dtype.element_ty), mask)
