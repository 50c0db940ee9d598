"""Triton kernels for operations that no library fuses.

They compute in float32, whatever the tensors' dtype. Affine parameters are frozen and get no gradient.
"""

from sliders.fast.kernels.few_keys import MOST_CHANNELS, MOST_KEYS, AttentionToFewKeys
from sliders.fast.kernels.geglu import GEGLU
from sliders.fast.kernels.group_norm import GroupNormSiLU
from sliders.fast.kernels.layer_norm import AddLayerNorm
from sliders.fast.kernels.rms_norm import AddRMSNorm
from sliders.fast.kernels.rotary import HeadNorms, ParallelHeads, PutLeft, RotatedHeads
from sliders.fast.kernels.rows import reads_float8, unpack_rows
from sliders.fast.kernels.scaled_product import add_scaled_product, beside_scaled
from sliders.fast.kernels.swiglu import SwiGLU, SwiGLUOfHalves

__all__ = [
    "GEGLU",
    "MOST_CHANNELS",
    "MOST_KEYS",
    "AddLayerNorm",
    "AddRMSNorm",
    "AttentionToFewKeys",
    "GroupNormSiLU",
    "HeadNorms",
    "ParallelHeads",
    "PutLeft",
    "RotatedHeads",
    "SwiGLU",
    "SwiGLUOfHalves",
    "add_scaled_product",
    "beside_scaled",
    "reads_float8",
    "unpack_rows",
]
