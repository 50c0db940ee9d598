"""How kernels see tensors as rows, with factors for each row of the batch."""

from torch import Tensor

NARROW, FEW, MANY = 2048, 2, 8  # values of a row, and warps of its program up to so many and above


def warps_of(block: int) -> int:
    """Warps of a row's program: more would wait for each other, fewer hold more values than they have registers."""
    return FEW if block <= NARROW else MANY


def tokens_of(x: Tensor) -> int:
    """Rows [n] that x [B, … , n] has for each row of the batch."""
    return x.numel() // (len(x) * x.shape[-1])


def batch_stride(factors: Tensor | None) -> int:
    """0 if factors [n] or [1, n] are those of all rows of the batch. Those of [B, n] may be parts of wider rows."""
    return 0 if factors is None or factors.ndim == 1 or len(factors) == 1 else factors.stride(0)


def dense_rows(x: Tensor) -> Tensor:
    """[… , n] → [rows, n], a view where rows lie equally far apart."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()
