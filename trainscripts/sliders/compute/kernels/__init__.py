"""Triton kernels for operations that no library fuses.

They compute in float32, whatever the tensors' dtype. Affine parameters are frozen and get no gradient.
"""

from sliders.compute.kernels.geglu import GEGLU
from sliders.compute.kernels.group_norm import GroupNormSiLU
from sliders.compute.kernels.layer_norm import AddLayerNorm
from sliders.compute.kernels.rows import reads_float8, unpack_rows

__all__ = ["GEGLU", "AddLayerNorm", "GroupNormSiLU", "reads_float8", "unpack_rows"]
