"""Names of the transformer's modules in slider files: `lora_unet_` and the name in the original checkpoint.

Musubi Tuner writes these names. ComfyUI, Forge Neo, SD.Next, InvokeAI and diffusers resolve all of them, with alpha.
"""

from itertools import product

PREFIX = "lora_unet_"
DOUBLE, SINGLE = 5, 20  # blocks of the 4B model
DOUBLE_LAYERS = {
    "attn.to_qkv": "img_attn.qkv",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_added_qkv": "txt_attn.qkv",
    "attn.to_add_out": "txt_attn.proj",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
SINGLE_LAYERS = {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}


def original_name(module: str) -> str:
    """`transformer_blocks.0.attn.to_qkv` → `double_blocks.0.img_attn.qkv`. Raises KeyError for modules of other paths."""
    blocks, index, layer = module.split(".", 2)
    if blocks == "transformer_blocks":
        return f"double_blocks.{index}.{DOUBLE_LAYERS[layer]}"
    return f"single_blocks.{index}.{SINGLE_LAYERS[layer]}"


def file_key(module: str) -> str:
    """Module path in the joined transformer → the prefix of its adaptor's keys in a slider file, up to the first dot."""
    return PREFIX + original_name(module).replace(".", "_")


def klein_file_keys() -> frozenset[str]:
    """The prefixes for all Linear layers in the blocks of the 4B model, by the original network's architecture."""
    parts = [f"{stream}_{layer}" for stream in ("img", "txt") for layer in ("attn_qkv", "attn_proj", "mlp_0", "mlp_2")]
    double = {f"{PREFIX}double_blocks_{block}_{part}" for block, part in product(range(DOUBLE), parts)}
    single = {f"{PREFIX}single_blocks_{block}_linear{number}" for block, number in product(range(SINGLE), (1, 2))}
    return frozenset(double | single)
