"""GroupNorm fused with SiLU on channels-last images.

On CUDA, PyTorch's GroupNorm converts channels-last images to contiguous ones and back, and SiLU is another pass over
memory. Here the forward pass reads the image twice and writes it once; the backward pass reads images four times and
writes one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, CHANNELS = 64, 64  # the tile of one program: a chunk of pixels × channels
GATHERED = 4096  # most values that a group's program reads at once: twice as many do not fit in registers


class GroupNormSiLU(torch.autograd.Function):
    """x [B, C, h, w] → group_norm(x), then SiLU if `silu`; weight, bias [C]. Wu & He 2018, arXiv:1803.08494."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        pixels, chunks = height * width, triton.cdiv(height * width, ROWS)
        part_mean, part_m2 = x.new_empty((2, batch, chunks, channels), dtype=torch.float32)
        mean, rstd = x.new_empty((2, batch, groups), dtype=torch.float32)
        out = torch.empty_like(x)
        grid = (chunks, batch, triton.cdiv(channels, CHANNELS))
        shape = (pixels, channels)
        _channel_stats[grid](x, part_mean, part_m2, *shape, ROWS, CHANNELS)
        _group_stats[batch, groups](part_mean, part_m2, mean, rstd, *shape, chunks, eps, ROWS, *_gathered(x, groups))
        _normalise[grid](x, mean, rstd, weight, bias, out, *shape, groups, silu, ROWS, CHANNELS)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.silu = groups, silu
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        pixels, chunks = height * width, triton.cdiv(height * width, ROWS)
        part_sum, part_dot = x.new_empty((2, batch, chunks, channels), dtype=torch.float32)
        total, dot = x.new_empty((2, batch, ctx.groups), dtype=torch.float32)
        grad_x = torch.empty_like(x)
        grid = (chunks, batch, triton.cdiv(channels, CHANNELS))
        tensors, shape = (x, grad, mean, rstd, weight, bias), (pixels, channels)
        _channel_sums[grid](*tensors, part_sum, part_dot, *shape, ctx.groups, ctx.silu, ROWS, CHANNELS)
        _group_sums[batch, ctx.groups](part_sum, part_dot, total, dot, channels, chunks, *_gathered(x, ctx.groups))
        _normalise_backward[grid](*tensors, total, dot, grad_x, *shape, ctx.groups, ctx.silu, ROWS, CHANNELS)
        return grad_x, None, None, None, None, None


def _gathered(x: Tensor, groups: int) -> tuple[int, int]:
    """Chunks and channels (padded to a power of two) that a group's program reads at once."""
    group = triton.next_power_of_2(x.shape[1] // groups)
    return min(64, GATHERED // group), group


@triton.jit
def _tile(pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Returns offsets and mask [ROWS, CHANNELS] of this program's tile, and its channels [CHANNELS]."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(1).to(tl.int64) * pixels
    offsets = (image + rows)[:, None] * channels + columns[None, :]
    return offsets, (rows < pixels)[:, None] & (columns < channels)[None, :], columns


@triton.jit
def _channel_stats(x, part_mean, part_m2, pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Mean and sum of squared deviations of each channel in one chunk of pixels. Unlike Σx², they do not cancel."""
    offsets, mask, columns = _tile(pixels, channels, ROWS, CHANNELS)
    value = tl.load(x + offsets, mask, other=0.0).to(tl.float32)
    count = tl.minimum(ROWS, pixels - tl.program_id(0) * ROWS)
    mean = tl.sum(value, 0) / count
    deviation = tl.where(mask, value - mean[None, :], 0.0)
    place = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * channels + columns
    tl.store(part_mean + place, mean, columns < channels)
    tl.store(part_m2 + place, tl.sum(deviation * deviation, 0), columns < channels)


@triton.jit
def _group_stats(
    part_mean, part_m2, mean, rstd, pixels, channels, chunks, eps,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Combines the chunks' statistics into a group's mean and 1 / standard deviation (Chan et al. 1979)."""
    per_group = channels // tl.num_programs(1)
    columns = tl.arange(0, GROUP)
    first = tl.program_id(0) * chunks * channels + tl.program_id(1) * per_group
    total = tl.zeros((CHUNKS, GROUP), tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        mask = (chunk < chunks)[:, None] & (columns < per_group)[None, :]
        count = tl.minimum(ROWS, pixels - chunk * ROWS)
        value = tl.load(part_mean + first + chunk[:, None] * channels + columns[None, :], mask, other=0.0)
        total += tl.where(mask, value * count[:, None], 0.0)
    size = pixels * per_group
    centre = tl.sum(total) / size
    squares = tl.zeros((CHUNKS, GROUP), tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        mask = (chunk < chunks)[:, None] & (columns < per_group)[None, :]
        count = tl.minimum(ROWS, pixels - chunk * ROWS)
        place = first + chunk[:, None] * channels + columns[None, :]
        away = tl.load(part_mean + place, mask, other=0.0) - centre
        within = tl.load(part_m2 + place, mask, other=0.0)
        squares += tl.where(mask, within + away * away * count[:, None], 0.0)
    group = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(mean + group, centre)
    tl.store(rstd + group, 1.0 / tl.sqrt(tl.sum(squares) / size + eps))


@triton.jit
def _affine(x, mean, rstd, weight, bias, offsets, mask, columns, channels, groups):
    """Returns normalised x, normalised x · weight + bias, and per channel: weight and 1 / standard deviation."""
    inside = columns < channels
    group = tl.program_id(1) * groups + columns // (channels // groups)
    scale = tl.load(rstd + group, inside, other=0.0)
    centre = tl.load(mean + group, inside, other=0.0)
    gain = tl.load(weight + columns, inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, inside, other=0.0).to(tl.float32)
    value = tl.load(x + offsets, mask, other=0.0).to(tl.float32)
    normal = (value - centre[None, :]) * scale[None, :]
    return normal, normal * gain[None, :] + shift[None, :], gain, scale


@triton.jit
def _normalise(
    x, mean, rstd, weight, bias, out, pixels, channels, groups,
    SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    offsets, mask, columns = _tile(pixels, channels, ROWS, CHANNELS)
    _, value, _, _ = _affine(x, mean, rstd, weight, bias, offsets, mask, columns, channels, groups)
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(out + offsets, value.to(out.dtype.element_ty), mask)


@triton.jit
def _grad_normal(grad, value, gain, offsets, mask, SILU: tl.constexpr):
    """Gradient with respect to normalised x."""
    upstream = tl.load(grad + offsets, mask, other=0.0).to(tl.float32)
    if SILU:
        gate = tl.sigmoid(value)
        upstream = upstream * gate * (1.0 + value * (1.0 - gate))
    return upstream * gain[None, :]


@triton.jit
def _channel_sums(
    x, grad, mean, rstd, weight, bias, part_sum, part_dot, pixels, channels, groups,
    SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    offsets, mask, columns = _tile(pixels, channels, ROWS, CHANNELS)
    normal, value, gain, _ = _affine(x, mean, rstd, weight, bias, offsets, mask, columns, channels, groups)
    upstream = _grad_normal(grad, value, gain, offsets, mask, SILU)
    place = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * channels + columns
    tl.store(part_sum + place, tl.sum(upstream, 0), columns < channels)
    tl.store(part_dot + place, tl.sum(upstream * normal, 0), columns < channels)


@triton.jit
def _group_sums(part_sum, part_dot, total, dot, channels, chunks, CHUNKS: tl.constexpr, GROUP: tl.constexpr):
    per_group = channels // tl.num_programs(1)
    columns = tl.arange(0, GROUP)
    first = tl.program_id(0) * chunks * channels + tl.program_id(1) * per_group
    sums = tl.zeros((CHUNKS, GROUP), tl.float32)
    dots = tl.zeros((CHUNKS, GROUP), tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        mask = (chunk < chunks)[:, None] & (columns < per_group)[None, :]
        place = first + chunk[:, None] * channels + columns[None, :]
        sums += tl.load(part_sum + place, mask, other=0.0)
        dots += tl.load(part_dot + place, mask, other=0.0)
    group = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(total + group, tl.sum(sums))
    tl.store(dot + group, tl.sum(dots))


@triton.jit
def _normalise_backward(
    x, grad, mean, rstd, weight, bias, total, dot, grad_x, pixels, channels, groups,
    SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    offsets, mask, columns = _tile(pixels, channels, ROWS, CHANNELS)
    normal, value, gain, scale = _affine(x, mean, rstd, weight, bias, offsets, mask, columns, channels, groups)
    upstream = _grad_normal(grad, value, gain, offsets, mask, SILU)
    per_group = channels // groups
    group = tl.program_id(1) * groups + columns // per_group
    size = pixels * per_group
    average = tl.load(total + group, columns < channels, other=0.0) / size
    slope = tl.load(dot + group, columns < channels, other=0.0) / size
    result = scale[None, :] * (upstream - average[None, :] - normal * slope[None, :])
    tl.store(grad_x + offsets, result.to(grad_x.dtype.element_ty), mask)
