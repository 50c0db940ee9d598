"""Names of modules and parameters in the original checkpoints: CompVis' latent diffusion, and SGM for SDXL; OpenAI's CLIP, OpenCLIP."""

import re
from collections.abc import Callable
from dataclasses import dataclass

PREFIX = "lora_unet_"
RESNET_PARTS = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "norm1": "in_layers.0",
    "norm2": "out_layers.0",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
PLACES = (  # (diffusers' path of a module, SGM's)
    (r"down_blocks\.(\d+)\.resnets\.(\d+)", lambda i, j: f"input_blocks.{1 + 3 * i + j}.0"),
    (r"down_blocks\.(\d+)\.attentions\.(\d+)", lambda i, j: f"input_blocks.{1 + 3 * i + j}.1"),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.conv", lambda i: f"input_blocks.{3 + 3 * i}.0.op"),
    (r"mid_block\.resnets\.(\d+)", lambda j: f"middle_block.{2 * j}"),
    (r"mid_block\.attentions\.(\d+)", lambda j: f"middle_block.{1 + 2 * j}"),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda i, j: f"output_blocks.{3 * i + j}.0"),
    (r"up_blocks\.(\d+)\.attentions\.(\d+)", lambda i, j: f"output_blocks.{3 * i + j}.1"),
)
UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
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
IN_PROJECTION = re.compile(r"\.self_attn\.([qkv])_proj\.(weight|bias)$")


def original_name(module: str, has_attention: Callable[[int], bool]) -> str:
    """`down_blocks.1.attentions.0.proj_in` → `input_blocks.4.1.proj_in`. Raises KeyError for modules of other paths.

    has_attention: whether an up block, by its index, has transformers. They precede its upsampler.
    """
    if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", module):
        block = int(match[1])
        return f"output_blocks.{2 + 3 * block}.{1 + has_attention(block)}.conv"
    for pattern, place in PLACES:
        match = re.match(rf"{pattern}(?:\.(.+))?$", module)
        if match:
            *indices, inner = match.groups()
            if "resnets" in pattern and inner is not None:
                inner = RESNET_PARTS[inner]
            return place(*map(int, indices)) + (f".{inner}" if inner else "")
    raise KeyError(module)


@dataclass(frozen=True)
class Origin:
    """Where the value of a parameter is: under which key, and as which part of it."""

    key: str
    third: int | None = None  # which third of the rows: OpenCLIP keeps queries, keys and values in one matrix
    transposed: bool = False


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


def open_clip_origin(parameter: str) -> Origin:
    """`encoder.layers.0.self_attn.q_proj.weight` → the first third of `transformer.resblocks.0.attn.in_proj_weight`."""
    name = parameter
    for pattern, replacement in OPEN_CLIP:
        name = re.sub(pattern, replacement, name)
    if name == "text_projection.weight":
        return Origin("text_projection", transposed=True)
    if match := IN_PROJECTION.search(name):
        return Origin(f"{name[: match.start()]}.attn.in_proj_{match[2]}", third="qkv".index(match[1]))
    return Origin(name)
