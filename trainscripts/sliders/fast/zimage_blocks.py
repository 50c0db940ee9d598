"""Runs the blocks of Z-Image's transformer with fused kernels. Modules and their names stay the same.

Modulation and rotary embedding depend on nothing that is adapted, so they get no gradient.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from diffusers import ZImageTransformer2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_z_image import (
    FeedForward,
    ZImageTransformerBlock,
    ZSingleStreamAttnProcessor,
)
from torch import Tensor, nn

from sliders.compute.patches import Patches
from sliders.fast.attention import Attend, Together, sdpa
from sliders.fast.frozen import side_by_side


def fuse_zimage(
    transformer: ZImageTransformer2DModel, attend: Attend, together: Callable[..., Together | None], patches: Patches
) -> None:
    """Replaces the `forward` of blocks, attention and feed-forward layers, to which adaptors are attached before.

    together: computes layers of one input with their adaptors at once, if it can.
    """
    for module in transformer.modules():
        if isinstance(module, ZImageTransformerBlock) and _is_plain(module):
            patches.replace(module, partial(_block, module, module.forward))
        elif isinstance(module, Attention) and _attends_plainly(module):
            project = _projection((module.to_q, module.to_k, module.to_v), together)
            patches.replace(module, partial(_attention, module, attend, project))
        elif isinstance(module, FeedForward):
            patches.replace(module, partial(_feed_forward, module))


def _projection(layers: Sequence[nn.Module], together: Callable[..., Together | None]) -> Together | None:
    """Query, key and value at once, if they are adapted alike, or not at all.

    Not if they are quantised and frozen: autograd would keep their unpacked weights until the backward pass.
    """
    frozen = all(type(layer) is nn.Linear for layer in layers)
    return together(layers) or (side_by_side(layers) if frozen else None)


def _is_plain(block: ZImageTransformerBlock) -> bool:
    """Whether `_block` computes what the block does."""
    norms = (block.attention_norm1, block.attention_norm2, block.ffn_norm1, block.ffn_norm2)
    return all(map(_has_weight, norms)) and len({norm.eps for norm in norms}) == 1


def _attends_plainly(attention: Attention) -> bool:
    """Whether `_attention` computes what the layer does."""
    norms = (attention.norm_q, attention.norm_k)
    return type(attention.processor) is ZSingleStreamAttnProcessor and all(map(_has_weight, norms))


def _has_weight(norm: nn.Module | None) -> bool:
    return isinstance(norm, RMSNorm) and norm.weight is not None and norm.bias is None


def _attention(
    attention: Attention, attend: Attend, project: Together | None, hidden_states: Tensor,
    attention_mask: Tensor | None = None, freqs_cis: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """hidden_states [B, n, C], attention_mask [B, n] bool, freqs_cis [B, n, d / 2] complex → [B, n, C]"""
    from sliders.fast import kernels

    joint = project and project(hidden_states)
    if joint is None:
        joint = torch.cat([layer(hidden_states) for layer in (attention.to_q, attention.to_k, attention.to_v)], -1)
    norm = kernels.HeadNorms(attention.norm_q.weight, attention.norm_k.weight, attention.norm_q.eps)
    cos, sin = torch.view_as_real(freqs_cis).unbind(-1)
    heads = kernels.RotatedHeads.apply(cos, sin, attention.heads, (norm,), joint)
    found = attend(*heads) if attention_mask is None else sdpa(*heads, attention_mask)
    return attention.to_out[0](found.flatten(2))


def _feed_forward(layer: FeedForward, x: Tensor) -> Tensor:
    from sliders.fast import kernels

    return layer.w2(kernels.SwiGLU.apply(layer.w1(x), layer.w3(x)))


def _block(
    block: ZImageTransformerBlock, plain: Callable, x: Tensor, attn_mask: Tensor | None, freqs_cis: Tensor,
    adaln_input: Tensor | None = None, *of_noisy_and_clean: Tensor | None,
) -> Tensor:  # fmt: skip
    """x [B, n, C], adaln_input [B, D], attn_mask and freqs_cis as in `_attention` → [B, n, C]"""
    modulation = block.adaLN_modulation(adaln_input) if block.modulation and adaln_input is not None else None
    if any(t is not None for t in of_noisy_and_clean) or (modulation is not None and modulation.requires_grad):
        return plain(x, attn_mask, freqs_cis, adaln_input, *of_noisy_and_clean)
    from sliders.fast import kernels

    scale, gate, last_scale, last_gate = [None] * 4 if modulation is None else modulation.chunk(4, -1)
    first, second, third, fourth = (
        norm.weight for norm in (block.attention_norm1, block.attention_norm2, block.ffn_norm1, block.ffn_norm2)
    )
    eps, add_norm = block.ffn_norm1.eps, kernels.AddRMSNorm.apply
    x, normal = add_norm(x, None, None, None, first, scale, eps)
    attended = block.attention(normal, attention_mask=attn_mask, freqs_cis=freqs_cis)
    x, normal = add_norm(x, attended, second, gate, third, last_scale, eps)
    return add_norm(x, block.feed_forward(normal), fourth, last_gate, None, None, eps)
