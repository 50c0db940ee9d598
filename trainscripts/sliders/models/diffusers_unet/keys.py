"""How each layout names modules and parameters: CompVis' latent diffusion, and SGM for SDXL; OpenAI's CLIP, OpenCLIP; diffusers."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

PREFIX = "lora_unet_"
RESNET_PARTS = {
    "conv1": "in_layers.2", "conv2": "out_layers.3", "norm1": "in_layers.0", "norm2": "out_layers.0",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
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
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
VAE_PARTS = (  # (part of diffusers' name, CompVis'), in this order
    ("encoder.down_blocks.", "encoder.down."), ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0", "mid.attn_1"), (".resnets.", ".block."), ("downsamplers.0.conv", "downsample.conv"),
    ("upsamplers.0.conv", "upsample.conv"), ("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out"),
    *((f"attn_1.{ours}.", f"attn_1.{theirs}.") for ours, theirs in VAE_ATTENTION.items()),
)  # fmt: skip
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
ENCODERS = {  # how keys begin in single files: Hugging Face's names follow `transformer.`, OpenCLIP's `model.`
    "text_encoder": (
        "conditioner.embedders.0.transformer.",
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.model.", "conditioner.embedders.1.transformer."),
}
# diffusers' older names in the VAE's attention
OLDER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
SPELLINGS = (  # of keys in single files → the usual ones
    (re.compile(r"^vae\."), VAE_PREFIX),
    (re.compile(r"^(.*\.transformer)\.(?=(embeddings|encoder|final_layer_norm)\.)"), r"\1.text_model."),
    *(
        (re.compile(rf"(first_stage_model\..*\.attn_1)\.({re.escape(new)}|{OLDER.get(new, new)})\."), rf"\1.{usual}.")
        for new, usual in VAE_ATTENTION.items()
    ),
)
FOLDER_SPELLINGS = tuple(  # of keys in diffusers folders, as older versions wrote them
    (re.compile(rf"(\.attentions\.\d+)\.{old}\."), rf"\1.{new}.") for new, old in OLDER.items()
)


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
    return f"{UNET_ENDS.get(module) or original_name(module, has_attention)}.{kind}"


def vae_name(parameter: str, levels: int = 4) -> str:
    name = re.sub(r"decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", parameter)
    for ours, theirs in VAE_PARTS:
        name = name.replace(ours, theirs)
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


def single_file_origins(
    part: str, parameters: Iterable[str], config: Mapping, keys: Mapping[str, str]
) -> dict[str, Origin]:
    """{parameter: its origin in a single file, in the usual spelling}. keys: those that the file has, in that spelling."""
    if part == "unet":
        blocks = config.get("up_block_types", ())
        names = {p: unet_name(p, lambda block: "CrossAttn" in blocks[block]) for p in parameters}
        if not any(key.startswith(UNET_PREFIX) for key in keys) and any(key.startswith("model_ema.") for key in keys):
            # only the moving averages were kept, whose names have no dots
            return {p: Origin(f"model_ema.diffusion_model{name.replace('.', '')}") for p, name in names.items()}
        return {p: Origin(UNET_PREFIX + name) for p, name in names.items()}
    if part == "vae":
        return {p: Origin(VAE_PREFIX + vae_name(p, len(config["block_out_channels"]))) for p in parameters}
    choices = ENCODERS[part]
    prefix = next((prefix for prefix in choices if any(key.startswith(prefix) for key in keys)), choices[0])
    return {p: _encoder_origin(p, prefix, keys) for p in parameters}


def _encoder_origin(parameter: str, prefix: str, keys: Mapping[str, str]) -> Origin:
    if prefix.endswith("transformer."):
        bare = parameter.removeprefix("text_model.")
        return Origin(f"{prefix}{'' if bare.startswith('text_projection') else 'text_model.'}{bare}")
    origin = open_clip_origin(parameter)
    key = prefix + origin.key
    if origin.transposed and key not in keys and f"{key}.weight" in keys:
        key += ".weight"  # ComfyUI takes the text projection for a linear layer's weight
    return replace(origin, key=key)


def folder_origins(parameters: Iterable[str], keys: Mapping[str, str]) -> dict[str, Origin]:
    """{parameter: its origin in a part of a diffusers folder}. Versions of transformers differ by `text_model.`."""
    bare = {p: p.removeprefix("text_model.") for p in parameters}
    names = {p: (p, b, f"text_model.{b}") for p, b in bare.items()}
    return {p: Origin(next((name for name in spelled if name in keys), p)) for p, spelled in names.items()}


def usual_spellings(stored: Iterable[str], spellings: tuple) -> dict[str, str]:
    """{key in the usual spelling: key in the file}. One that is there in both spellings keeps its own."""
    found: dict[str, str] = {key: key for key in stored}
    for key in stored:
        usual = key
        for pattern, replacement in spellings:
            usual = pattern.sub(replacement, usual)
        if usual not in found:
            found[usual] = found.pop(key)
    return found
