"""Runs the blocks of UNet and VAE with fused kernels on CUDA. Modules and their names stay the same."""

from collections.abc import Sequence
from functools import partial
from types import MethodType

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from sliders.compute.patches import Patches


def fuse_blocks(model: nn.Module, patches: Patches) -> None:
    """Replaces the `forward` of ResNets, GEGLUs, transformers and the last norm. Adaptors may be attached before or after."""
    for module in model.modules():
        if isinstance(module, ResnetBlock2D) and _is_plain(module):
            patches.replace(module, MethodType(_resnet, module))
        elif isinstance(module, Encoder | Decoder | UNet2DConditionModel) and _ends_plainly(module):
            patches.replace(module.conv_norm_out, MethodType(_norm_and_silu, module.conv_norm_out))
            patches.replace(module.conv_act, _pass)
        elif isinstance(module, GEGLU):
            patches.replace(module, MethodType(_geglu, module))
        elif isinstance(module, Transformer2DModel) and _transforms_images(module):
            patches.replace(module, MethodType(_transformer, module))


def _is_plain(block: ResnetBlock2D) -> bool:
    """Whether `_resnet` computes what the block does; it implements only these options."""
    return (
        (block.time_embedding_norm == "default" or block.time_emb_proj is None)
        and block.upsample is None
        and block.downsample is None
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.output_scale_factor == 1
        and block.dropout.p == 0
    )


def _ends_plainly(model: Encoder | Decoder | UNet2DConditionModel) -> bool:
    """Whether the last convolution follows a group norm and SiLU."""
    return isinstance(model.conv_norm_out, nn.GroupNorm) and isinstance(model.conv_act, nn.SiLU)


def _normalises_plainly(block: BasicTransformerBlock) -> bool:
    """Whether `_transformer_block` computes what the block does."""
    return block.norm_type == "layer_norm" and block.attn2 is not None


def _transforms_images(model: Transformer2DModel) -> bool:
    """Whether `_transformer` computes what the model does."""
    return model.is_input_continuous and all(map(_normalises_plainly, model.transformer_blocks))


def _resnet(block: ResnetBlock2D, x: Tensor, temb: Tensor | None) -> Tensor:
    """x [B, C, h, w], temb [B, time channels], in a VAE None → [B, C', h, w]"""
    skip, hidden = _norm(block.norm1, x, silu=True)
    hidden = block.conv1(hidden)
    shift = None if block.time_emb_proj is None else block.time_emb_proj(block.nonlinearity(temb))
    _, hidden = _norm(block.norm2, hidden, silu=True, shift=shift)
    return block.conv2(hidden) + (skip if block.conv_shortcut is None else block.conv_shortcut(skip))


def _transformer(
    model: Transformer2DModel, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_args: None,
    return_dict: bool = True, **_kwargs: None,
) -> Transformer2DModelOutput | tuple[Tensor]:  # fmt: skip
    """hidden_states [B, C, h, w], encoder_hidden_states [B, m, D] → [B, C, h, w]. Channels-last images are not copied."""
    skip, image = _norm(model.norm, hidden_states, silu=False)
    linear, size = model.use_linear_projection, image.shape[2:]  # SD 1 has 1 × 1 convolutions
    tokens = model.proj_in(_tokens(image)) if linear else _tokens(model.proj_in(image))
    if model.gradient_checkpointing and torch.is_grad_enabled():
        blocks = list(model.transformer_blocks)
        # Two at once keep half as many tokens, but need twice the memory meanwhile: too much where images are large.
        count = 2 if len(blocks) > 2 else 1
        for start in range(0, len(blocks), count):
            part = partial(_whole_blocks, blocks[start : start + count])
            tokens = model._gradient_checkpointing_func(part, tokens, encoder_hidden_states)
    else:
        tokens = _whole_blocks(model.transformer_blocks, tokens, encoder_hidden_states)
    image = _image(model.proj_out(tokens), size) if linear else model.proj_out(_image(tokens, size))
    output = image + skip
    return Transformer2DModelOutput(sample=output) if return_dict else (output,)


def _transformer_block(
    block: BasicTransformerBlock, tokens: Tensor, addend: Tensor | None, context: Tensor
) -> tuple[Tensor, Tensor]:
    """tokens [B, n, C] and what is to be added to them, context [B, m, D] → the same of the block's output.

    So the kernel of the next block's norm can add them.
    """
    tokens, normal = _add_norm(tokens, addend, block.norm1)
    own = block.attn1(normal)
    tokens, normal = _add_norm(tokens, own, block.norm2)
    crossed = block.attn2(normal, encoder_hidden_states=context)
    tokens, normal = _add_norm(tokens, crossed, block.norm3)
    return tokens, block.ff(normal)


def _whole_blocks(blocks: Sequence[BasicTransformerBlock], tokens: Tensor, context: Tensor) -> Tensor:
    """Several blocks, and one tensor, because gradient checkpointing keeps what a part returns."""
    addend = None
    for block in blocks:
        tokens, addend = _transformer_block(block, tokens, addend, context)
    return tokens + addend


def _geglu(layer: GEGLU, hidden_states: Tensor) -> Tensor:
    from sliders.fast import kernels

    return kernels.GEGLU.apply(layer.proj(hidden_states))


def _tokens(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1).flatten(1, 2)


def _image(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def _add_norm(x: Tensor, y: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    from sliders.fast import kernels

    return kernels.AddLayerNorm.apply(x, y, norm.weight, norm.bias, norm.eps)


def _norm_and_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return _norm(norm, x, silu=True)[1]


def _pass(x: Tensor) -> Tensor:
    """In place of a SiLU that has been computed with the norm before it."""
    return x


def _norm(norm: nn.GroupNorm, x: Tensor, silu: bool, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns x, for a skip connection, and its norm."""
    from sliders.fast import kernels

    return kernels.GroupNormSiLU.apply(x, shift, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)
