"""Triton kernels for operations that no library fuses.

They compute in float32, whatever the tensors' dtype. Affine parameters are frozen and get no gradient.
"""

from sliders.fast.kernels.few_keys import MOST_CHANNELS, MOST_KEYS, AttentionToFewKeys
from sliders.fast.kernels.geglu import GEGLU
from sliders.fast.kernels.group_norm import GroupNormSiLU
from sliders.fast.kernels.layer_norm import AddLayerNorm
from sliders.fast.kernels.rows import reads_float8, unpack_rows
from sliders.fast.kernels.scaled_product import add_scaled_product, beside_scaled

__all__ = [
    "GEGLU",
    "MOST_CHANNELS",
    "MOST_KEYS",
    "AddLayerNorm",
    "AttentionToFewKeys",
    "GroupNormSiLU",
    "add_scaled_product",
    "beside_scaled",
    "reads_float8",
    "unpack_rows",
]
