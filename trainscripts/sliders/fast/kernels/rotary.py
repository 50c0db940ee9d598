"""Query and key of a joint projection: their RMS norms, and the rotary embedding; and a value beside them.

Zhang & Sennrich 2019, arXiv:1910.07467, and Su et al. 2021, arXiv:2104.09864, whose pairs of channels are neighbours here.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from sliders.fast.kernels.row_factors import dense_rows
from sliders.fast.kernels.swiglu import write_swiglu, write_swiglu_gradient

HEADS, WARPS = 8, 2  # that one program computes, and its warps


@dataclass(frozen=True, eq=False)
class HeadNorms:
    """RMS norms over the d channels of each head. query, key [d]: their weights, which get no gradient."""

    query: Tensor
    key: Tensor
    eps: float


class RotatedHeads(torch.autograd.Function):
    """Joint projections [B, n, 3 · heads · d] of one stream or several → query, key, value [B, Σ n, heads, d].

    cos, sin: of each token and pair of channels, [Σ n, d / 2], or [B, Σ n, d / 2] for each row of the batch; float32. norms:
    those of each stream. Streams follow each other.
    """

    @staticmethod
    def forward(
        ctx, cos: Tensor, sin: Tensor, heads: int, norms: tuple[HeadNorms, ...], *streams: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        out = _new_heads(streams, heads, streams[0].shape[-1] // (3 * heads))
        start = 0
        for stream, norm in zip(streams, norms, strict=True):
            _write_heads(stream, norm, cos, sin, out, start)
            start += stream.shape[1]
        ctx.save_for_backward(cos, sin, *streams)
        ctx.norms = norms
        return out.unbind()

    @staticmethod
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin, *streams = ctx.saved_tensors
        grads, start = [], 0
        for stream, norm, needed in zip(streams, ctx.norms, ctx.needs_input_grad[4:], strict=True):
            grads.append(stream.new_empty(stream.shape) if needed else None)
            if needed:
                _write_heads_gradient(stream, norm, cos, sin, upstream, start, grads[-1])
            start += stream.shape[1]
        return None, None, None, None, *grads


class ParallelHeads(torch.autograd.Function):
    """x [B, n, 3 · heads · d + 2m], a projection for attention and feed-forward → query, key, value, and what comes after.

    As `RotatedHeads`, and [B, n, heads · d + m] with room for the attention's output, and beside it the SwiGLU of the
    last 2m. `PutLeft` fills the room.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, cos: Tensor, sin: Tensor, heads: int, norm: HeadNorms
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inner = heads * len(norm.query)
        out = _new_heads((x,), heads, len(norm.query))
        _write_heads(x, norm, cos, sin, out, 0)
        gate, linear = x[..., 3 * inner :].chunk(2, -1)
        both = x.new_empty((*x.shape[:-1], inner + gate.shape[-1]))
        write_swiglu(gate, linear, both[..., inner:])
        ctx.save_for_backward(x, cos, sin)
        ctx.norm, ctx.inner = norm, inner
        return *out.unbind(), both

    @staticmethod
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, cos, sin = ctx.saved_tensors
        *heads, both = upstream
        grad = x.new_empty(x.shape)
        _write_heads_gradient(x, ctx.norm, cos, sin, heads, 0, grad)
        own, found = (t[..., 3 * ctx.inner :].chunk(2, -1) for t in (x, grad))
        write_swiglu_gradient(*own, both[..., ctx.inner :], *found)
        return grad, None, None, None, None


class PutLeft(torch.autograd.Function):
    """left [B, n, a] into the room of `whole` [B, n, a + b], which is returned. The room gets no gradient."""

    @staticmethod
    def forward(ctx, whole: Tensor, left: Tensor) -> Tensor:
        ctx.mark_dirty(whole)
        ctx.width = left.shape[-1]
        whole[..., : ctx.width].copy_(left)
        return whole

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad[..., : ctx.width]


def _new_heads(streams: tuple[Tensor, ...], heads: int, channels: int) -> Tensor:
    tokens = sum(stream.shape[1] for stream in streams)
    return streams[0].new_empty((3, len(streams[0]), tokens, heads, channels))


def _write_heads(x: Tensor, norm: HeadNorms, cos: Tensor, sin: Tensor, out: Tensor, start: int) -> None:
    """Into the tokens of `out` [3, B, tokens, heads, d] from `start` on."""
    rows, (_, _, total, heads, width) = dense_rows(x), out.shape
    grid = (len(rows), triton.cdiv(heads, HEADS), 3)
    sizes = (x.shape[1], start, heads, width, norm.eps, HEADS, triton.next_power_of_2(width // 2))
    strides = (rows.stride(0), total, out.stride(0), *_table_strides(cos))
    _rotate[grid](rows, norm.query, norm.key, cos, sin, out, *strides, *sizes, num_warps=WARPS)


def _write_heads_gradient(
    x: Tensor, norm: HeadNorms, cos: Tensor, sin: Tensor, upstream: tuple[Tensor, ...], start: int, grad: Tensor
) -> None:
    """Into the first columns of `grad`, which has x's shape."""
    rows, found = dense_rows(x), dense_rows(grad)
    if len({t.stride() for t in upstream}) > 1 or upstream[0].stride(-1) != 1:
        upstream = [t.contiguous() for t in upstream]
    heads, width = upstream[0].shape[2:]
    grid = (len(rows), triton.cdiv(heads, HEADS), 3)
    sizes = (x.shape[1], start, heads, width, norm.eps, HEADS, triton.next_power_of_2(width // 2))
    strides = (rows.stride(0), found.stride(0), *upstream[0].stride()[:3], *_table_strides(cos))
    tensors = (rows, norm.query, norm.key, cos, sin, *upstream, found)
    _rotate_backward[grid](*tensors, *strides, *sizes, num_warps=WARPS)


def _table_strides(table: Tensor) -> tuple[int, int, int]:
    """Of the batch, a token and a pair."""
    return (0 if table.ndim == 2 or len(table) == 1 else table.stride(0)), *table.stride()[-2:]


@triton.jit
def _pairs(value, PAIRS: tl.constexpr):
    """[HEADS, 2 · PAIRS] → [HEADS, PAIRS] twice: even and odd channels."""
    return tl.split(tl.reshape(value, (value.shape[0], PAIRS, 2)))


@triton.jit
def _weights(weight, width, PAIRS: tl.constexpr):
    pair = tl.arange(0, PAIRS)
    mask = 2 * pair < width
    even = tl.load(weight + 2 * pair, mask, other=0.0).to(tl.float32)
    odd = tl.load(weight + 2 * pair + 1, mask, other=0.0).to(tl.float32)
    return even[None, :], odd[None, :]


@triton.jit
def _angles(cos, sin, batch, token, table_batch, table_token, table_pair, width, PAIRS: tl.constexpr):
    pair = tl.arange(0, PAIRS)
    offset = batch * table_batch + token * table_token + pair * table_pair
    mask = 2 * pair < width
    c, s = tl.load(cos + offset, mask, other=0.0).to(tl.float32), tl.load(sin + offset, mask, other=0.0).to(tl.float32)
    return c[None, :], s[None, :]


@triton.jit
def _joined(even, odd, PAIRS: tl.constexpr):
    return tl.reshape(tl.join(even, odd), (even.shape[0], 2 * PAIRS))


@triton.jit
def _rotate(
    x, query_weight, key_weight, cos, sin, out, x_row, total, out_part, table_batch, table_token, table_pair,
    tokens, start, heads, width, eps, HEADS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(2)
    batch, token = row // tokens, start + row % tokens
    head, column = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, 2 * PAIRS)
    mask = (head < heads)[:, None] & (column < width)[None, :]
    offset = head[:, None] * width + column[None, :]
    loaded = tl.load(x + row * x_row + part * heads * width + offset, mask, other=0.0)
    target = out + part.to(tl.int64) * out_part + (batch * total + token) * heads * width + offset
    if part == 2:
        tl.store(target, loaded, mask)
    else:
        value = loaded.to(tl.float32)
        rstd = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
        even, odd = _pairs(value * rstd[:, None], PAIRS)
        weight = query_weight if part == 0 else key_weight
        even_weight, odd_weight = _weights(weight, width, PAIRS)
        even, odd = even * even_weight, odd * odd_weight
        c, s = _angles(cos, sin, batch, token, table_batch, table_token, table_pair, width, PAIRS)
        result = _joined(even * c - odd * s, odd * c + even * s, PAIRS)
        tl.store(target, result.to(out.dtype.element_ty), mask)


@triton.jit
def _rotate_backward(
    x, query_weight, key_weight, cos, sin, grad_query, grad_key, grad_value, grad, x_row, grad_row,
    up_batch, up_token, up_head, table_batch, table_token, table_pair,
    tokens, start, heads, width, eps, HEADS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(2)
    batch, token = row // tokens, start + row % tokens
    head, column = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, 2 * PAIRS)
    mask = (head < heads)[:, None] & (column < width)[None, :]
    inside = part * heads * width + head[:, None] * width + column[None, :]
    source = batch * up_batch + token * up_token + head[:, None] * up_head + column[None, :]
    target = grad + row * grad_row + inside
    if part == 2:
        tl.store(target, tl.load(grad_value + source, mask, other=0.0), mask)
    else:
        upstream = grad_query if part == 0 else grad_key
        weight = query_weight if part == 0 else key_weight
        value = tl.load(x + row * x_row + inside, mask, other=0.0).to(tl.float32)
        even, odd = _pairs(tl.load(upstream + source, mask, other=0.0).to(tl.float32), PAIRS)
        even_weight, odd_weight = _weights(weight, width, PAIRS)
        c, s = _angles(cos, sin, batch, token, table_batch, table_token, table_pair, width, PAIRS)
        slope = _joined((even * c + odd * s) * even_weight, (odd * c - even * s) * odd_weight, PAIRS)
        rstd = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
        normal = value * rstd[:, None]
        result = rstd[:, None] * (slope - normal * (tl.sum(slope * normal, 1) / width)[:, None])
        tl.store(target, result.to(grad.dtype.element_ty), mask)
