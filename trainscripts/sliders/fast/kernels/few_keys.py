"""Attention to so few keys that one program reads them all, as to a prompt, with frozen keys and values.

Then each query is a problem of its own, also in the backward pass. Libraries split that pass by keys: the work of 77 keys
would occupy one multiprocessor per head, and its gradients of keys and values are not needed.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

QUERIES, HOPPERS = 32, 64  # of one program; Hopper's instructions multiply 64 rows
MOST_KEYS, MOST_CHANNELS = 128, 64  # more do not fit in registers


class AttentionToFewKeys(torch.autograd.Function):
    """query [B, n, heads, d], key, value [B, m, heads, d] → softmax(q·kᵀ / √d)·v, [B, n, heads, d].

    m ≤ `MOST_KEYS`, d ≤ `MOST_CHANNELS`; the channels of all lie next to each other. Only the query gets a gradient.
    Vaswani et al. 2017, arXiv:1706.03762.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        grid, sizes = _grid(query, key)
        _attend[grid](*_arguments(query, key, value, out), *sizes)
        ctx.save_for_backward(query, key, value)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        grid, sizes = _grid(query, key)
        _attend_backward[grid](*_arguments(query, key, value, grad, grad_query), *sizes)
        return grad_query, None, None


def _grid(query: Tensor, key: Tensor) -> tuple[tuple[int, int, int], tuple[int | float, ...]]:
    """Grid and sizes of the kernels."""
    batch, length, heads, channels = query.shape
    keys = key.shape[1]
    hopper = query.is_cuda and torch.cuda.get_device_capability(query.device)[0] == 9
    rows = HOPPERS if hopper else QUERIES
    padded = (max(16, triton.next_power_of_2(size)) for size in (keys, channels))
    return (triton.cdiv(length, rows), heads, batch), (length, keys, channels, 1 / math.sqrt(channels), rows, *padded)


def _arguments(*tensors: Tensor) -> list[Tensor | int]:
    """Each tensor and its strides of batch, token and head."""
    return [argument for tensor in tensors for argument in (tensor, *tensor.stride()[:3])]


@triton.jit
def _tile(
    x, batch_stride, token_stride, head_stride, start, tokens, width, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Pointers and mask [ROWS, WIDTH] of a head's tokens from `start` on."""
    rows, columns = start + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    head = x + tl.program_id(2).to(tl.int64) * batch_stride + tl.program_id(1) * head_stride
    return head + rows[:, None] * token_stride + columns[None, :], (rows < tokens)[:, None] & (columns < width)[None, :]


@triton.jit
def _read(
    x, batch_stride, token_stride, head_stride, start, tokens, width, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    offset, mask = _tile(x, batch_stride, token_stride, head_stride, start, tokens, width, ROWS, WIDTH)
    return tl.load(offset, mask, other=0.0)


@triton.jit
def _probabilities(query, key, keys, scale, KEYS: tl.constexpr):
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where((tl.arange(0, KEYS) < keys)[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def _attend(
    query, query_batch, query_token, query_head, key, key_batch, key_token, key_head,
    value, value_batch, value_token, value_head, out, out_batch, out_token, out_head,
    queries, keys, channels, scale, QUERIES: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0) * QUERIES
    q = _read(query, query_batch, query_token, query_head, start, queries, channels, QUERIES, CHANNELS)
    k = _read(key, key_batch, key_token, key_head, 0, keys, channels, KEYS, CHANNELS)
    v = _read(value, value_batch, value_token, value_head, 0, keys, channels, KEYS, CHANNELS)
    weights = _probabilities(q, k, keys, scale, KEYS)
    result = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    offset, mask = _tile(out, out_batch, out_token, out_head, start, queries, channels, QUERIES, CHANNELS)
    tl.store(offset, result.to(out.dtype.element_ty), mask)


@triton.jit
def _attend_backward(
    query, query_batch, query_token, query_head, key, key_batch, key_token, key_head,
    value, value_batch, value_token, value_head, grad, grad_batch, grad_token, grad_head,
    grad_query, out_batch, out_token, out_head,
    queries, keys, channels, scale, QUERIES: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0) * QUERIES
    q = _read(query, query_batch, query_token, query_head, start, queries, channels, QUERIES, CHANNELS)
    k = _read(key, key_batch, key_token, key_head, 0, keys, channels, KEYS, CHANNELS)
    weights = _probabilities(q, k, keys, scale, KEYS)
    v = _read(value, value_batch, value_token, value_head, 0, keys, channels, KEYS, CHANNELS)
    upstream = _read(grad, grad_batch, grad_token, grad_head, start, queries, channels, QUERIES, CHANNELS)
    slopes = tl.dot(upstream, tl.trans(v), input_precision="ieee")
    slopes = weights * (slopes - tl.sum(weights * slopes, 1)[:, None]) * scale
    result = tl.dot(slopes.to(k.dtype), k, input_precision="ieee")
    offset, mask = _tile(grad_query, out_batch, out_token, out_head, start, queries, channels, QUERIES, CHANNELS)
    tl.store(offset, result.to(grad_query.dtype.element_ty), mask)
