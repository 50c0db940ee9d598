"""Triton kernels for what no library fuses, forwards and backwards. Affine parameters are frozen: they get no gradient.
All arithmetic is float32, whatever the tensors' dtype."""

from sliders.compute.kernels.geglu import GEGLU
from sliders.compute.kernels.group_norm import GroupNormSiLU
from sliders.compute.kernels.layer_norm import AddLayerNorm

__all__ = ["GEGLU", "AddLayerNorm", "GroupNormSiLU"]
