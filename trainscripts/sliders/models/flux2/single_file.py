"""The transformer in a single file with the original names, as Black Forest Labs and model sites distribute it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sliders.models.flow.kinds import Shapes, SingleFile
from sliders.models.flux2.configs import TRANSFORMER
from sliders.models.flux2.keys import original_name

OUTER = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
NORMS = {"norm_q": "query_norm", "norm_k": "key_norm", "norm_added_q": "query_norm", "norm_added_k": "key_norm"}
SWAPPED = "norm_out.linear.weight"  # the file has shift before scale, diffusers scale before shift
SIZES = ("img_in.weight", "txt_in.weight", "time_in.in_layer.weight", "single_blocks.0.linear2.weight")
HEAD = "double_blocks.0.img_attn.norm.query_norm.scale"


def original_key(parameter: str) -> str:
    """Parameter of the joined transformer → its key. Raises KeyError for one of another path."""
    module, _, _ = parameter.rpartition(".")
    if module in OUTER:
        return f"{OUTER[module]}.weight"
    parent, _, name = module.rpartition(".")
    if name not in NORMS:
        return f"{original_name(module)}.weight"
    blocks, index, _ = parent.split(".")
    stream = "txt_attn." if "added" in name else "img_attn."
    place = f"double_blocks.{index}.{stream}" if blocks == "transformer_blocks" else f"single_blocks.{index}."
    return f"{place}norm.{NORMS[name]}.scale"


def config_of(shapes: Shapes) -> dict[str, Any]:
    """The config.json of a transformer, from the shapes of its weights, by key without prefix."""

    def count(blocks: str) -> int:
        return len({key.split(".")[1] for key in shapes if key.startswith(f"{blocks}.")})

    (width, channels), (_, text), (_, times), (_, inner) = (shapes[key] for key in SIZES)
    (head,) = shapes[HEAD]
    return {
        **TRANSFORMER,
        "in_channels": channels,
        "num_layers": count("double_blocks"),
        "num_single_layers": count("single_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": text,
        "timestep_guidance_channels": times,
        "mlp_ratio": (inner - width) / width,
        "axes_dims_rope": (head // 4,) * 4,
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
    }


def shapes_of(parameters: Mapping[str, Tensor]) -> Shapes:
    return {original_key(name): tuple(empty.shape) for name, empty in parameters.items()}


def state_of(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """{parameter of the joined transformer: its value}. tensors: by key without prefix. parameters: all that it has."""
    found = {name: tensors[original_key(name)].to(dtype) for name in parameters}
    found[SWAPPED] = torch.cat([*reversed(found[SWAPPED].chunk(2))])
    return found


KLEIN_FILE = SingleFile((*SIZES, HEAD), config_of, shapes_of, state_of)
