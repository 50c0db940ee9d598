"""Writes a pipeline as one file in the original layout, as model sites distribute it; for tests and benchmarks."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from sliders.models.diffusers_unet.keys import original_name

UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = (
    (r"^(text_model\.)?embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"^(text_model\.)?embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^(text_model\.)?final_layer_norm", "ln_final"),
    (r"^(text_model\.)?encoder\.layers", "transformer.resblocks"),
    (r"\.layer_norm1\.", ".ln_1."),
    (r"\.layer_norm2\.", ".ln_2."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
)


def unet_name(parameter: str, has_attention: Callable[[int], bool]) -> str:
    """has_attention: whether an up block, by its index, has transformers."""
    module, _, kind = parameter.rpartition(".")
    return f"{UNET_ENDS[module] if module in UNET_ENDS else original_name(module, has_attention)}.{kind}"


def vae_name(parameter: str, levels: int = 4) -> str:
    name = re.sub(r"decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", parameter)
    name = name.replace("encoder.down_blocks.", "encoder.down.")
    name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace(".resnets.", ".block.")
    name = name.replace("downsamplers.0.conv", "downsample.conv").replace("upsamplers.0.conv", "upsample.conv")
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    if "attn_1" in name:
        for ours, theirs in VAE_ATTENTION.items():
            name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    return name


def open_clip_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for parameter, tensor in state.items():
        if ".self_attn." in parameter and "_proj" in parameter and "out_proj" not in parameter:
            continue
        name = parameter
        for pattern, replacement in OPEN_CLIP:
            name = re.sub(pattern, replacement, name)
        found["text_projection" if name == "text_projection.weight" else name] = (
            tensor.T if "text_projection" in name else tensor
        )
    for parameter in state:
        if parameter.endswith("self_attn.q_proj.weight"):
            layer = re.search(r"layers\.(\d+)", parameter)[1]
            for kind in ("weight", "bias"):
                qkv = [state[parameter.replace("q_proj.weight", f"{p}_proj.{kind}")] for p in "qkv"]
                found[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(qkv)
    return found


def text_states(pipe: DiffusionPipeline) -> list[tuple[str, dict[str, Tensor]]]:
    """(prefix, state dict) of each text encoder: OpenAI's CLIP, OpenCLIP in SD 2, both in SDXL."""
    first = pipe.text_encoder.state_dict()
    clip = {f"transformer.text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in first.items()}
    if "text_encoder_2" in pipe.components:
        second = open_clip_state(pipe.text_encoder_2.state_dict())
        return [("conditioner.embedders.0.", clip), ("conditioner.embedders.1.model.", second)]
    if pipe.unet.config.use_linear_projection:
        return [("cond_stage_model.model.", open_clip_state(first))]
    return [("cond_stage_model.", clip)]


def unet_state(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    def has_attention(block: int) -> bool:
        return "CrossAttn" in unet.config.up_block_types[block]

    return {unet_name(name, has_attention): tensor for name, tensor in unet.state_dict().items()}


def original_state(pipe: DiffusionPipeline, announce: Sequence[str] = ()) -> dict[str, Tensor]:
    """The state dict in the original layout. announce: marker keys to add, such as `v_pred` and `ztsnr`."""
    found = {f"model.diffusion_model.{name}": tensor for name, tensor in unet_state(pipe.unet).items()}
    for name, tensor in pipe.vae.state_dict().items():
        attention = re.search(r"attentions\.0\.to_.*weight", name)
        found[f"first_stage_model.{vae_name(name)}"] = tensor[:, :, None, None] if attention else tensor
    for prefix, state in text_states(pipe):
        found |= {prefix + name: tensor for name, tensor in state.items()}
    found |= {key: torch.zeros(()) for key in announce}
    return {key: tensor.contiguous() for key, tensor in found.items()}


def save_single_file(pipe: DiffusionPipeline, path: Path, announce: Sequence[str] = ()) -> Path:
    """Writes a .safetensors or .ckpt. Returns `path`."""
    state = original_state(pipe, announce)
    if path.suffix == ".ckpt":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    return path
