"""Names of Stable Diffusion 1's and 2's UNet modules in slider files: `lora_unet_` and the name in diffusers.

kohya's scripts write these names. A1111, Forge, ComfyUI and diffusers all resolve them completely.
"""

from functools import cache

from sliders.models.diffusers_unet.keys import PREFIX, original_name

RESNET = ("conv1", "time_emb_proj", "conv2")


def original_sd_name(module: str) -> str:
    """`down_blocks.1.attentions.0.proj_in` → `input_blocks.4.1.proj_in`. Raises KeyError for modules of other paths."""
    return original_name(module, has_attention=lambda block: block > 0)


def file_key(module: str) -> str:
    """Module path in diffusers' UNet → the prefix of its adaptor's keys in a slider file, up to the first dot."""
    return PREFIX + module.replace(".", "_")


@cache
def sd_file_keys() -> frozenset[str]:
    """The prefixes for all Linear and Conv2d layers in ResNets, transformers, down- and upsamplers.

    They follow the network's architecture (4 levels of 2 ResNets, 1, 2, 4 and 4 times as wide as the first, transformers
    at all but the lowest resolution) instead of a UNet, so that a renamed module is found when a file is checked.
    """
    widths, last = (1, 2, 4, 4), 3
    names = ["mid_block_resnets_0", "mid_block_resnets_1"]
    names = [f"{name}_{part}" for name in names for part in RESNET] + _transformer("mid_block_attentions_0")
    for level in range(4):
        for block in range(2):
            widens = level > 0 and block == 0 and widths[level] != widths[level - 1]
            names += _resnet(f"down_blocks_{level}_resnets_{block}", widens)
            names += _transformer(f"down_blocks_{level}_attentions_{block}") if level != last else []
        for block in range(3):
            names += _resnet(f"up_blocks_{level}_resnets_{block}", True)  # concatenated with a skip connection
            names += _transformer(f"up_blocks_{level}_attentions_{block}") if level != 0 else []
        if level != last:
            names += [f"down_blocks_{level}_downsamplers_0_conv", f"up_blocks_{level}_upsamplers_0_conv"]
    return frozenset(PREFIX + name for name in names)


def _resnet(name: str, widens: bool) -> list[str]:
    return [f"{name}_{part}" for part in (*RESNET, *(["conv_shortcut"] if widens else []))]


def _transformer(name: str) -> list[str]:
    attention = [f"{a}_{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v", "to_out_0")]
    block = [f"{name}_transformer_blocks_0_{part}" for part in (*attention, "ff_net_0_proj", "ff_net_2")]
    return [f"{name}_proj_in", *block, f"{name}_proj_out"]
