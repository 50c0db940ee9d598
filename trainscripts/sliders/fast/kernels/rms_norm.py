"""RMS norms fused with the residual addition between them, and with the sum of gradients behind it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sliders.fast.kernels.row_factors import batch_stride, dense_rows, tokens_of, warps_of


class AddRMSNorm(torch.autograd.Function):
    """x, y [B, … , n] → t = x + tanh(gate) · norm(y) · inner, and norm(t) · weight · (1 + scale), each [B, … , n].

    norm(v) is v / √(mean(v²) + eps). inner, weight [n]; gate, scale [B, n], or None for a factor of 1. y may be None: then
    x and its norm. weight may be None: then t alone. The rows
    of y may be parts of wider ones. The backward kernel adds the gradients that arrive through both.

    Zhang & Sennrich 2019, arXiv:1910.07467.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, y: Tensor | None, inner: Tensor | None, gate: Tensor | None, weight: Tensor | None,
        scale: Tensor | None, eps: float,
    ) -> tuple[Tensor, Tensor] | Tensor:  # fmt: skip
        x, y = x.contiguous(), None if y is None else dense_rows(y)
        total = x if y is None else torch.empty_like(x)
        normal = None if weight is None else torch.empty_like(x)
        _add_rms_norm[_rows(x)](
            x, y, inner, gate, weight, scale, total, normal, *_sizes(x, y, gate, scale, eps), num_warps=_warps(x)
        )
        ctx.save_for_backward(total, y, inner, gate, weight, scale)
        ctx.eps = eps
        return total if normal is None else (total, normal)

    @staticmethod
    def backward(ctx, grad_total: Tensor, grad_normal: Tensor | None = None) -> tuple[Tensor | None, ...]:
        total, y, inner, gate, weight, scale = ctx.saved_tensors
        grad_total = grad_total.contiguous()
        grad_normal = None if grad_normal is None else grad_normal.contiguous()
        grad = grad_total if grad_normal is None else torch.empty_like(total)
        grad_y = torch.empty_like(total) if ctx.needs_input_grad[1] else None
        _add_rms_norm_backward[_rows(total)](
            total, y, grad_total, grad_normal, inner, gate, weight, scale, grad, grad_y,
            *_sizes(total, y, gate, scale, ctx.eps), num_warps=_warps(total),
        )  # fmt: skip
        return grad, grad_y, None, None, None, None, None


def _rows(x: Tensor) -> tuple[int]:
    return (x.numel() // x.shape[-1],)


def _warps(x: Tensor) -> int:
    return warps_of(triton.next_power_of_2(x.shape[-1]))


def _sizes(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor | None, eps: float
) -> tuple[int | float, ...]:
    width = x.shape[-1]
    strides = (0 if y is None else y.stride(0), batch_stride(gate), batch_stride(scale))
    return *strides, tokens_of(x), width, eps, triton.next_power_of_2(width)


@triton.jit
def _factor(weight, gate, scale, batch, gate_batch, scale_batch, columns, mask):
    """weight · tanh(gate) · (1 + scale) of a row. gate and scale may be None."""
    factor = tl.load(weight + columns, mask, other=0.0).to(tl.float32)
    if gate is not None:
        opened = tl.load(gate + batch * gate_batch + columns, mask, other=0.0).to(tl.float32)
        factor *= 2.0 / (1.0 + tl.exp(-2.0 * opened)) - 1.0
    if scale is not None:
        factor *= 1.0 + tl.load(scale + batch * scale_batch + columns, mask, other=0.0).to(tl.float32)
    return factor


@triton.jit
def _normal(value, width, eps):
    """A row / its root mean square, and 1 / that."""
    rstd = 1.0 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    return value * rstd, rstd


@triton.jit
def _add_rms_norm(
    x, y, inner, gate, weight, scale, total, normal, y_row, gate_batch, scale_batch, tokens, width, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    batch = row // tokens
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    offset = row.to(tl.int64) * width + columns
    value = tl.load(x + offset, mask, other=0.0).to(tl.float32)
    if y is not None:
        addend, _ = _normal(tl.load(y + row.to(tl.int64) * y_row + columns, mask, other=0.0).to(tl.float32), width, eps)
        value += addend * _factor(inner, gate, None, batch, gate_batch, 0, columns, mask)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + offset, rounded, mask)
        value = rounded.to(tl.float32)
    if normal is not None:
        result, _ = _normal(value, width, eps)
        result *= _factor(weight, None, scale, batch, 0, scale_batch, columns, mask)
        tl.store(normal + offset, result.to(normal.dtype.element_ty), mask)


@triton.jit
def _slope(upstream, normal, rstd, width):
    """The gradient of a row from that of its norm."""
    return rstd * (upstream - normal * (tl.sum(upstream * normal, 0) / width))


@triton.jit
def _add_rms_norm_backward(
    total, y, grad_total, grad_normal, inner, gate, weight, scale, grad, grad_y, y_row, gate_batch, scale_batch,
    tokens, width, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    batch = row // tokens
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    offset = row.to(tl.int64) * width + columns
    result = tl.load(grad_total + offset, mask, other=0.0).to(tl.float32)
    if grad_normal is not None:
        upstream = tl.load(grad_normal + offset, mask, other=0.0).to(tl.float32)
        upstream *= _factor(weight, None, scale, batch, 0, scale_batch, columns, mask)
        normal, rstd = _normal(tl.load(total + offset, mask, other=0.0).to(tl.float32), width, eps)
        result += _slope(upstream, normal, rstd, width)
        tl.store(grad + offset, result.to(grad.dtype.element_ty), mask)
    if grad_y is not None:
        upstream = result * _factor(inner, gate, None, batch, gate_batch, 0, columns, mask)
        normal, rstd = _normal(
            tl.load(y + row.to(tl.int64) * y_row + columns, mask, other=0.0).to(tl.float32), width, eps
        )
        tl.store(grad_y + offset, _slope(upstream, normal, rstd, width).to(grad_y.dtype.element_ty), mask)
