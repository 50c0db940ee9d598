"""Runs the blocks of FLUX.2's transformer with fused kernels. Modules and their names stay the same.

Modulation and rotary embedding depend on nothing that is adapted, so they get no gradient.
"""

from collections.abc import Callable
from functools import partial

import torch
from diffusers import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import (
    Flux2Attention,
    Flux2AttnProcessor,
    Flux2ParallelSelfAttention,
    Flux2ParallelSelfAttnProcessor,
    Flux2SingleTransformerBlock,
    Flux2SwiGLU,
    Flux2TransformerBlock,
)
from torch import Tensor, nn

from sliders.compute.patches import Patches
from sliders.fast.attention import Attend

Rotation = tuple[Tensor, Tensor]  # cos and sin [n, d] float32, equal for both channels of a pair


def fuse_flux2(transformer: Flux2Transformer2DModel, attend: Attend, _, patches: Patches) -> None:
    """Replaces the `forward` of blocks, attention and SwiGLU. Adaptors may be attached before or after."""
    from sliders.fast import kernels

    for module in transformer.modules():
        if isinstance(module, Flux2SwiGLU):
            patches.replace(module, kernels.SwiGLUOfHalves.apply)
        elif isinstance(module, Flux2Attention) and _attends_plainly(module):
            patches.replace(module, partial(_attention, module, attend))
        elif isinstance(module, Flux2ParallelSelfAttention) and _is_plain(module):
            patches.replace(module, partial(_parallel_attention, module, attend))
        elif isinstance(module, Flux2TransformerBlock):
            patches.replace(module, partial(_double_block, module, module.forward))
        elif isinstance(module, Flux2SingleTransformerBlock):
            patches.replace(module, partial(_single_block, module, module.forward))


def _attends_plainly(attention: Flux2Attention) -> bool:
    """Whether `_attention` computes what the layer does."""
    return (
        type(attention.processor) is Flux2AttnProcessor
        and attention.fused_projections
        and hasattr(attention, "to_added_qkv")
        and attention.dropout == 0
        and all(map(_has_weight, (attention.norm_q, attention.norm_k, attention.norm_added_q, attention.norm_added_k)))
    )


def _is_plain(attention: Flux2ParallelSelfAttention) -> bool:
    """Whether `_parallel_attention` computes what the layer does."""
    return (
        type(attention.processor) is Flux2ParallelSelfAttnProcessor
        and isinstance(attention.mlp_act_fn, Flux2SwiGLU)
        and attention.mlp_mult_factor == 2
        and all(map(_has_weight, (attention.norm_q, attention.norm_k)))
    )


def _has_weight(norm: nn.RMSNorm) -> bool:
    return norm.weight is not None and norm.eps is not None


def _attention(
    attention: Flux2Attention, attend: Attend, hidden_states: Tensor, encoder_hidden_states: Tensor,
    image_rotary_emb: Rotation, **_: None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """hidden_states [B, n, C] of the image, encoder_hidden_states [B, m, C] of the text → the same."""
    from sliders.fast import kernels

    norms = (
        kernels.HeadNorms(query.weight, key.weight, query.eps)
        for query, key in ((attention.norm_added_q, attention.norm_added_k), (attention.norm_q, attention.norm_k))
    )
    text, image = attention.to_added_qkv(encoder_hidden_states), attention.to_qkv(hidden_states)
    heads = kernels.RotatedHeads.apply(*_of_pairs(image_rotary_emb), attention.heads, tuple(norms), text, image)
    parts = attend(*heads).flatten(2).split([text.shape[1], image.shape[1]], 1)
    text, image = (part.contiguous() for part in parts)  # once, instead of in each product that reads them
    return attention.to_out[0](image), attention.to_add_out(text)


def _parallel_attention(
    attention: Flux2ParallelSelfAttention, attend: Attend, hidden_states: Tensor, image_rotary_emb: Rotation, **_: None
) -> Tensor:
    """Attention and feed-forward of all tokens [B, n, C] → [B, n, C]."""
    from sliders.fast import kernels

    norm = kernels.HeadNorms(attention.norm_q.weight, attention.norm_k.weight, attention.norm_q.eps)
    projected = attention.to_qkv_mlp_proj(hidden_states)
    *heads, both = kernels.ParallelHeads.apply(projected, *_of_pairs(image_rotary_emb), attention.heads, norm)
    return attention.to_out(kernels.PutLeft.apply(both, attend(*heads).flatten(2)))


def _of_pairs(rotation: Rotation) -> Rotation:
    """cos and sin of each pair of channels, [n, d / 2], views."""
    cos, sin = rotation
    return cos[:, ::2], sin[:, ::2]


def _double_block(
    block: Flux2TransformerBlock, plain: Callable, hidden_states: Tensor, encoder_hidden_states: Tensor,
    temb_mod_img: Tensor, temb_mod_txt: Tensor, image_rotary_emb: Rotation, joint_attention_kwargs: dict | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Tokens of the image [B, n, C] and of the text [B, m, C] → those of the text and of the image."""
    if not _modulates_plainly(hidden_states, temb_mod_img, temb_mod_txt):
        return plain(
            hidden_states, encoder_hidden_states, temb_mod_img, temb_mod_txt, image_rotary_emb, joint_attention_kwargs
        )
    of_image, of_text = (mod.chunk(6, -1) for mod in (temb_mod_img, temb_mod_txt))
    image, image_normal = _add_norm(hidden_states, None, None, block.norm1, *of_image[:2])
    text, text_normal = _add_norm(encoder_hidden_states, None, None, block.norm1_context, *of_text[:2])
    image_attended, text_attended = block.attn(
        hidden_states=image_normal, encoder_hidden_states=text_normal, image_rotary_emb=image_rotary_emb,
        **(joint_attention_kwargs or {}),
    )  # fmt: skip
    image, image_normal = _add_norm(image, image_attended, of_image[2], block.norm2, *of_image[3:5])
    text, text_normal = _add_norm(text, text_attended, of_text[2], block.norm2_context, *of_text[3:5])
    image = _add(image, of_image[5], block.ff(image_normal))
    return _add(text, of_text[5], block.ff_context(text_normal)), image


def _single_block(
    block: Flux2SingleTransformerBlock, plain: Callable, hidden_states: Tensor, encoder_hidden_states: Tensor | None,
    temb_mod: Tensor, image_rotary_emb: Rotation, joint_attention_kwargs: dict | None = None, **options,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Tokens of text and image [B, n, C] → the same."""
    if options or encoder_hidden_states is not None or not _modulates_plainly(hidden_states, temb_mod):
        return plain(
            hidden_states, encoder_hidden_states, temb_mod, image_rotary_emb, joint_attention_kwargs, **options
        )
    shift, scale, gate = temb_mod.chunk(3, -1)
    tokens, normal = _add_norm(hidden_states, None, None, block.norm, shift, scale)
    computed = block.attn(hidden_states=normal, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {}))
    return _add(tokens, gate, computed)


def _modulates_plainly(tokens: Tensor, *modulations: Tensor) -> bool:
    """Whether the modulation is that of whole rows of the batch and frozen, and nothing is clipped as in float16."""
    return tokens.dtype != torch.float16 and all(m.ndim == 2 and not m.requires_grad for m in modulations)


def _add_norm(
    x: Tensor, y: Tensor | None, gate: Tensor | None, norm: nn.LayerNorm, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """x + gate · y, for the residual connection, and its norm · (1 + scale) + shift."""
    from sliders.fast import kernels

    return kernels.AddLayerNorm.apply(x, y, scale, shift, norm.eps, gate, 1.0)


def _add(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    return torch.addcmul(x, gate[:, None], y)
