"""Triton kernels for what no library fuses, forwards and backwards. Affine parameters are frozen: they get no gradient.
All arithmetic is float32, whatever the tensors' dtype."""

from sliders.kernels.geglu import GEGLU
from sliders.kernels.group_norm import GroupNormSiLU
from sliders.kernels.layer_norm import AddLayerNorm

__all__ = ["GEGLU", "AddLayerNorm", "GroupNormSiLU"]
