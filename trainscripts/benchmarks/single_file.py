"""Writes a pipeline as one file in the original layout, as model sites distribute it; for benchmarks and tests."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from sliders.models.diffusers_unet.keys import UNET_PREFIX, VAE_PREFIX, open_clip_origin, unet_name, vae_name
from torch import Tensor


def open_clip_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    for parameter, tensor in state.items():
        origin = open_clip_origin(parameter)
        thirds = found.setdefault(origin.key, [tensor] * (1 if origin.third is None else 3))
        thirds[origin.third or 0] = tensor.T if origin.transposed else tensor
    return {key: torch.cat(thirds) for key, thirds in found.items()}


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
    found = {UNET_PREFIX + name: tensor for name, tensor in unet_state(pipe.unet).items()}
    for name, tensor in pipe.vae.state_dict().items():
        attention = re.search(r"attentions\.0\.to_.*weight", name)
        found[VAE_PREFIX + vae_name(name)] = tensor[:, :, None, None] if attention else tensor
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
