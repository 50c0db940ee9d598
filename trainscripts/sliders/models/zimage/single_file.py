"""The transformer in a single file with the original names, as Tongyi-MAI and model sites distribute it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sliders.models.flow.kinds import Shapes, SingleFile
from sliders.models.zimage.configs import TRANSFORMER

RENAMED = {  # part of a parameter's name → part of its key
    "all_x_embedder.2-1.": "x_embedder.",
    "all_final_layer.2-1.": "final_layer.",
    ".attention.to_out.0.": ".attention.out.",
    ".attention.norm_q.": ".attention.q_norm.",
    ".attention.norm_k.": ".attention.k_norm.",
}
JOINED = ("to_q", "to_k", "to_v")  # one weight in the file, in this order
PATCH = 4  # latents in a patch
FIRST = "layers.0.attention."
TELLING = ("cap_embedder.0.weight", "x_embedder.weight", "x_pad_token", f"{FIRST}qkv.weight", f"{FIRST}q_norm.weight")


def _place(parameter: str) -> tuple[str, int | None]:
    """Parameter of the transformer → its key, and which third of it."""
    for part, other in RENAMED.items():
        parameter = parameter.replace(part, other)
    for number, name in enumerate(JOINED):
        if f".attention.{name}." in parameter:
            return parameter.replace(f".{name}.", ".qkv."), number
    return parameter, None


def config_of(shapes: Shapes) -> dict[str, Any]:
    """The config.json of a transformer, from the shapes of its weights."""

    def count(blocks: str) -> int:
        return len({key.split(".")[1] for key in shapes if key.startswith(f"{blocks}.")})

    (text,), (width, patch), _, _, (head,) = (shapes[key] for key in TELLING)
    axis = TRANSFORMER["axes_dims"]
    return {
        **TRANSFORMER,
        "in_channels": patch // PATCH,
        "dim": width,
        "n_layers": count("layers"),
        "n_refiner_layers": count("noise_refiner"),
        "n_heads": width // head,
        "n_kv_heads": width // head,
        "cap_feat_dim": text,
        "siglip_feat_dim": shapes["siglip_embedder.0.weight"][0] if "siglip_embedder.0.weight" in shapes else None,
        "axes_dims": axis if sum(axis) == head else [head // 2, head // 4, head // 4],
    }


def shapes_of(parameters: Mapping[str, Tensor]) -> Shapes:
    found = {}
    for name, empty in parameters.items():
        key, third = _place(name)
        rows, *others = empty.shape
        found[key] = (rows if third is None else 3 * rows, *others)
    return found


def state_of(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    found = {}
    for name in parameters:
        key, third = _place(name)
        tensor = tensors[key].to(dtype)
        found[name] = tensor if third is None else tensor.chunk(len(JOINED))[third].clone()
    return found


ZIMAGE_FILE = SingleFile(TELLING, config_of, shapes_of, state_of)
