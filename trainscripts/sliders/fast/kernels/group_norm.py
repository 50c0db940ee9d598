"""GroupNorm fused with SiLU, the addition of an embedding before it, and the sum of gradients behind it.

For channels-last images, and parts of their channels. On CUDA, PyTorch's GroupNorm converts them to contiguous ones and
back, and the other operations are more passes over memory. Here the forward pass reads the image twice and writes it
once; the backward pass reads images four times, or five if it adds a gradient, and writes one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, CHANNELS = 64, 64  # the tile of one program: a chunk of pixels × channels
WRITTEN = 32  # pixels of the tile where a kernel writes an image
WARPS = 2  # of a tile's program
GATHERED = 4096  # most values that a group's program reads at once: twice as many do not fit in registers


class GroupNormSiLU(torch.autograd.Function):
    """x [B, C, h, w] → x and group_norm(x + shift), then SiLU if `silu`. Wu & He 2018, arXiv:1803.08494.

    weight, bias [C]. shift [B, C], or None: added to each pixel in float32. The sum is never written to memory, and the
    gradient of shift takes no pass over the image. Use the returned x for a skip connection: the backward kernel adds
    the gradient that arrives through it.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> tuple[Tensor, Tensor]:
        rows, shift = _rows(x), None if shift is None else _with_dense_rows(shift)
        batch, channels, height, width = x.shape
        pixels, chunks = height * width, triton.cdiv(height * width, ROWS)
        part_mean, part_m2 = x.new_empty((2, batch, chunks, channels), dtype=torch.float32)
        centre, rstd = (x.new_empty((batch, n), dtype=torch.float32) for n in (channels, groups))
        drift = None if shift is None else torch.empty_like(centre)
        out = torch.empty_like(x, memory_format=torch.channels_last)
        shape, stats = (pixels, channels), (centre, rstd, drift)
        _channel_stats[_grid(x, ROWS)](
            rows, part_mean, part_m2, rows.stride(0), *shape, ROWS, CHANNELS, num_warps=WARPS
        )
        sizes = (*shape, chunks, 0 if shift is None else shift.stride(0), eps, ROWS, *_gathered(channels, groups))
        _group_stats[batch, groups](part_mean, part_m2, shift, *stats, *sizes)
        sizes = (rows.stride(0), *shape, groups, silu, WRITTEN, CHANNELS)
        _normalise[_grid(x, WRITTEN)](rows, centre, rstd, weight, bias, out, *sizes, num_warps=WARPS)
        ctx.save_for_backward(rows, weight, bias, *stats)
        ctx.silu = silu
        ctx.set_materialize_grads(False)
        return x, out

    @staticmethod
    def backward(ctx, grad_skip: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return grad_skip, None, None, None, None, None, None
        x, weight, bias, centre, rstd, drift = ctx.saved_tensors  # x as rows
        (batch, channels, height, width), groups = grad.shape, rstd.shape[1]
        pixels, chunks = height * width, triton.cdiv(height * width, ROWS)
        part_sum, part_dot = x.new_empty((2, batch, chunks, channels), dtype=torch.float32)
        total, dot = torch.empty_like(rstd), torch.empty_like(rstd)
        grad_shift = x.new_empty(centre.shape) if ctx.needs_input_grad[1] else None
        upstream = _rows(grad)
        tensors, strides = (x, upstream, centre, rstd, weight, bias), (x.stride(0), upstream.stride(0))
        sizes = (pixels, channels, groups, ctx.silu)
        read = (*tensors, part_sum, part_dot, *strides, *sizes, ROWS, CHANNELS)
        _channel_sums[_grid(grad, ROWS)](*read, num_warps=WARPS)
        sums = (part_sum, part_dot, rstd, drift, total, dot, grad_shift)
        _group_sums[batch, groups](*sums, channels, chunks, *_gathered(channels, groups))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty_like(grad, dtype=x.dtype, memory_format=torch.channels_last)
            skip = None if grad_skip is None else _rows(grad_skip)
            strides = (*strides, 0 if skip is None else skip.stride(0))
            written = (*tensors, skip, total, dot, grad_x, *strides, *sizes, WRITTEN, CHANNELS)
            _normalise_backward[_grid(grad, WRITTEN)](*written, num_warps=WARPS)
        return grad_x, grad_shift, None, None, None, None, None


def _grid(image: Tensor, rows: int) -> tuple[int, int, int]:
    """Tiles of so many pixels."""
    batch, channels, height, width = image.shape
    return triton.cdiv(height * width, rows), batch, triton.cdiv(channels, CHANNELS)


def _rows(image: Tensor) -> Tensor:
    """[B, C, h, w] → [B · h · w, C], a view of channels-last images and parts of their channels, of others a copy."""
    return _with_dense_rows(image.permute(0, 2, 3, 1).flatten(0, 2))


def _with_dense_rows(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _gathered(channels: int, groups: int) -> tuple[int, int]:
    """Chunks and channels (padded to a power of two) that a group's program reads at once."""
    group = triton.next_power_of_2(channels // groups)
    return min(64, GATHERED // group), group


@triton.jit
def _tile(pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Returns rows [ROWS], channels [CHANNELS] and mask [ROWS, CHANNELS] of this program's tile."""
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    rows = tl.program_id(1).to(tl.int64) * pixels + pixel
    return rows, columns, (pixel < pixels)[:, None] & (columns < channels)[None, :]


@triton.jit
def _read(matrix, stride, rows, columns, mask):
    """Returns a tile in float32, 0 outside the mask. stride: from one row to the next."""
    return tl.load(matrix + rows[:, None] * stride + columns[None, :], mask, other=0.0).to(tl.float32)


@triton.jit
def _write(matrix, value, channels, rows, columns, mask):
    """Writes a tile of an image whose rows are dense."""
    tl.store(matrix + rows[:, None] * channels + columns[None, :], value.to(matrix.dtype.element_ty), mask)


@triton.jit
def _channel_stats(x, part_mean, part_m2, x_row, pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Mean and sum of squared deviations of each channel in one chunk of pixels. Unlike Σx², they do not cancel."""
    rows, columns, mask = _tile(pixels, channels, ROWS, CHANNELS)
    value = _read(x, x_row, rows, columns, mask)
    count = tl.minimum(ROWS, pixels - tl.program_id(0) * ROWS)
    mean = tl.sum(value, 0) / count
    deviation = tl.where(mask, value - mean[None, :], 0.0)
    offset = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * channels + columns
    tl.store(part_mean + offset, mean, columns < channels)
    tl.store(part_m2 + offset, tl.sum(deviation * deviation, 0), columns < channels)


@triton.jit
def _group_stats(
    part_mean, part_m2, shift, centre, rstd, drift, pixels, channels, chunks, shift_stride, eps,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Combines the chunks' statistics into those of a group of x + shift (Chan et al. 1979).

    centre [B, C]: the group's mean less the channel's shift, so that later kernels need no shift. rstd [B, groups]:
    1 / standard deviation. drift [B, C]: the mean of a channel's normalised values, if there is a shift.
    """
    per_group = channels // tl.num_programs(1)
    columns = tl.arange(0, GROUP)
    first = tl.program_id(0) * chunks * channels + tl.program_id(1) * per_group
    channel, inside = tl.program_id(1) * per_group + columns, columns < per_group
    added = tl.zeros((GROUP,), tl.float32)
    if shift is not None:
        row = shift + tl.program_id(0) * shift_stride
        added += tl.load(row + channel, inside, other=0.0).to(tl.float32)
    total = tl.zeros((CHUNKS, GROUP), tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        mask = (chunk < chunks)[:, None] & (columns < per_group)[None, :]
        count = tl.minimum(ROWS, pixels - chunk * ROWS)
        value = tl.load(part_mean + first + chunk[:, None] * channels + columns[None, :], mask, other=0.0)
        total += tl.where(mask, (value + added[None, :]) * count[:, None], 0.0)
    size = pixels * per_group
    sums = tl.sum(total, 0)
    mean = tl.sum(sums, 0) / size
    squares = tl.zeros((CHUNKS, GROUP), tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        mask = (chunk < chunks)[:, None] & (columns < per_group)[None, :]
        count = tl.minimum(ROWS, pixels - chunk * ROWS)
        offset = first + chunk[:, None] * channels + columns[None, :]
        away = tl.load(part_mean + offset, mask, other=0.0) + added[None, :] - mean
        within = tl.load(part_m2 + offset, mask, other=0.0)
        squares += tl.where(mask, within + away * away * count[:, None], 0.0)
    group = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    scale = 1.0 / tl.sqrt(tl.sum(squares) / size + eps)
    tl.store(rstd + group, scale)
    offset = tl.program_id(0) * channels + channel
    tl.store(centre + offset, mean - added, inside)
    if shift is not None:
        tl.store(drift + offset, (sums / pixels - mean) * scale, inside)


@triton.jit
def _affine(value, centre, rstd, weight, bias, columns, channels, groups):
    """Returns a tile normalised, normalised · weight + bias, and per channel: weight and 1 / standard deviation."""
    inside = columns < channels
    scale = tl.load(rstd + tl.program_id(1) * groups + columns // (channels // groups), inside, other=0.0)
    level = tl.load(centre + tl.program_id(1) * channels + columns, inside, other=0.0)
    gain = tl.load(weight + columns, inside, other=0.0).to(tl.float32)
    offset = tl.load(bias + columns, inside, other=0.0).to(tl.float32)
    normal = (value - level[None, :]) * scale[None, :]
    return normal, normal * gain[None, :] + offset[None, :], gain, scale


@triton.jit
def _normalise(
    x, centre, rstd, weight, bias, out, x_row, pixels, channels, groups,
    SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    rows, columns, mask = _tile(pixels, channels, ROWS, CHANNELS)
    value = _read(x, x_row, rows, columns, mask)
    _, value, _, _ = _affine(value, centre, rstd, weight, bias, columns, channels, groups)
    if SILU:
        value = value * tl.sigmoid(value)
    _write(out, value, channels, rows, columns, mask)


@triton.jit
def _grad_normal(upstream, value, gain, SILU: tl.constexpr):
    """Gradient with respect to normalised x."""
    if SILU:
        gate = tl.sigmoid(value)
        upstream = upstream * gate * (1.0 + value * (1.0 - gate))
    return upstream * gain[None, :]


@triton.jit
def _channel_sums(
    x, grad, centre, rstd, weight, bias, part_sum, part_dot, x_row, grad_row, pixels, channels, groups,
    SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    rows, columns, mask = _tile(pixels, channels, ROWS, CHANNELS)
    value = _read(x, x_row, rows, columns, mask)
    normal, value, gain, _ = _affine(value, centre, rstd, weight, bias, columns, channels, groups)
    upstream = _grad_normal(_read(grad, grad_row, rows, columns, mask), value, gain, SILU)
    offset = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * channels + columns
    tl.store(part_sum + offset, tl.sum(upstream, 0), columns < channels)
    tl.store(part_dot + offset, tl.sum(upstream * normal, 0), columns < channels)


@triton.jit
def _group_sums(
    part_sum, part_dot, rstd, drift, total, dot, grad_shift, channels, chunks,
    CHUNKS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Sums of a group for `_normalise_backward`, and grad_shift, the sum of what that will compute for each channel."""
    per_group = channels // tl.num_programs(1)
    columns = tl.arange(0, GROUP)
    first = tl.program_id(0) * chunks * channels + tl.program_id(1) * per_group
    sums = tl.zeros((CHUNKS, GROUP), tl.float32)
    dots = tl.zeros((CHUNKS, GROUP), tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        mask = (chunk < chunks)[:, None] & (columns < per_group)[None, :]
        offset = first + chunk[:, None] * channels + columns[None, :]
        sums += tl.load(part_sum + offset, mask, other=0.0)
        dots += tl.load(part_dot + offset, mask, other=0.0)
    group = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    channel_sums = tl.sum(sums, 0)
    group_sum, group_dot = tl.sum(channel_sums, 0), tl.sum(dots)
    tl.store(total + group, group_sum)
    tl.store(dot + group, group_dot)
    if grad_shift is not None:
        offset = tl.program_id(0) * channels + tl.program_id(1) * per_group + columns
        mean = tl.load(drift + offset, columns < per_group, other=0.0)
        result = tl.load(rstd + group) * (channel_sums - (group_sum + mean * group_dot) / per_group)
        tl.store(grad_shift + offset, result.to(grad_shift.dtype.element_ty), columns < per_group)


@triton.jit
def _normalise_backward(
    x, grad, centre, rstd, weight, bias, grad_skip, total, dot, grad_x, x_row, grad_row, skip_row,
    pixels, channels, groups,
    SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    rows, columns, mask = _tile(pixels, channels, ROWS, CHANNELS)
    value = _read(x, x_row, rows, columns, mask)
    normal, value, gain, scale = _affine(value, centre, rstd, weight, bias, columns, channels, groups)
    upstream = _grad_normal(_read(grad, grad_row, rows, columns, mask), value, gain, SILU)
    per_group = channels // groups
    group = tl.program_id(1) * groups + columns // per_group
    size = pixels * per_group
    average = tl.load(total + group, columns < channels, other=0.0) / size
    slope = tl.load(dot + group, columns < channels, other=0.0) / size
    result = scale[None, :] * (upstream - average[None, :] - normal * slope[None, :])
    if grad_skip is not None:
        result += _read(grad_skip, skip_row, rows, columns, mask)
    _write(grad_x, result, channels, rows, columns, mask)
