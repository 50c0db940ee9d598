"""SwiGLU, the gated linear unit of newer transformers: silu(a) · b. Shazeer 2020, arXiv:2002.05202."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sliders.fast.kernels.row_factors import dense_rows

BLOCK, WARPS = 512, 2  # of a program


class SwiGLU(torch.autograd.Function):
    """a, b [… , n] → silu(a) · b [… , n]. Their rows may be parts of wider ones."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        out = a.new_empty(a.shape)
        write_swiglu(a, b, out)
        ctx.save_for_backward(a, b)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        grads = a.new_empty(a.shape), b.new_empty(b.shape)
        write_swiglu_gradient(a, b, grad, *grads)
        return grads


class SwiGLUOfHalves(torch.autograd.Function):
    """x [… , 2n] → silu(a) · b [… , n] for the halves a, b of the last dimension. The rows of x may be parts of wider ones."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        out = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
        write_swiglu(*x.chunk(2, -1), out)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad_x = x.new_empty(x.shape)
        write_swiglu_gradient(*x.chunk(2, -1), grad, *grad_x.chunk(2, -1))
        return grad_x


def write_swiglu(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = silu(a) · b, all [… , n], parts of rows that lie equally far apart."""
    a, b, out = map(dense_rows, (a, b, out))
    _swiglu[_grid(out)](a, b, out, *(t.stride(0) for t in (a, b, out)), out.shape[1], BLOCK, num_warps=WARPS)


def write_swiglu_gradient(a: Tensor, b: Tensor, grad: Tensor, grad_a: Tensor, grad_b: Tensor) -> None:
    """The gradients of a and b from that of `write_swiglu`'s result, which has their shape."""
    tensors = [dense_rows(t) for t in (a, b, grad, grad_a, grad_b)]
    strides = (t.stride(0) for t in tensors)
    _swiglu_backward[_grid(tensors[0])](*tensors, *strides, tensors[0].shape[1], BLOCK, num_warps=WARPS)


def _grid(rows: Tensor) -> tuple[int, int]:
    return len(rows), triton.cdiv(rows.shape[1], BLOCK)


@triton.jit
def _swiglu(a, b, out, a_row, b_row, out_row, width, BLOCK: tl.constexpr):
    row, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    gate = tl.load(a + row * a_row + columns, mask, other=0.0).to(tl.float32)
    linear = tl.load(b + row * b_row + columns, mask, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * linear
    tl.store(out + row * out_row + columns, result.to(out.dtype.element_ty), mask)


@triton.jit
def _swiglu_backward(
    a, b, grad, grad_a, grad_b, a_row, b_row, grad_row, grad_a_row, grad_b_row, width, BLOCK: tl.constexpr
):  # fmt: skip
    row, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    gate = tl.load(a + row * a_row + columns, mask, other=0.0).to(tl.float32)
    linear = tl.load(b + row * b_row + columns, mask, other=0.0).to(tl.float32)
    upstream = tl.load(grad + row * grad_row + columns, mask, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    slope = upstream * linear * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(grad_a + row * grad_a_row + columns, slope.to(grad_a.dtype.element_ty), mask)
    tl.store(grad_b + row * grad_b_row + columns, (upstream * gate * sigmoid).to(grad_b.dtype.element_ty), mask)
