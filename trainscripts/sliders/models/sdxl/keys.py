"""Names of SDXL's UNet modules in slider files: `lora_unet_` and the name in the original checkpoint (SGM).

kohya's scripts write these names, the only ones that A1111, Forge, ComfyUI and diffusers all resolve completely.
"""

from functools import cache

from sliders.models.diffusers_unet.keys import PREFIX, original_name


def sgm_name(module: str) -> str:
    """`down_blocks.1.attentions.0.proj_in` → `input_blocks.4.1.proj_in`. Raises KeyError for modules of other paths."""
    return original_name(module, has_attention=lambda block: block < 2)


def file_key(module: str) -> str:
    """Module path in diffusers' UNet → the prefix of its adaptor's keys in a slider file, up to the first dot."""
    return PREFIX + sgm_name(module).replace(".", "_")


@cache
def sdxl_file_keys() -> frozenset[str]:
    """The prefixes for all Linear and Conv2d layers in SDXL-base's ResNets, transformers, down- and upsamplers.

    They follow the original network's architecture (3 levels of 2 ResNets, transformer depths 0, 2, 10) instead of
    `sgm_name`, so that a mistake there is found when a file is checked against them.
    """
    depths, last = (0, 2, 10), 2
    names: list[str] = []
    index = 1
    for level, depth in enumerate(depths):
        for block in range(2):
            names += _resnet(f"input_blocks.{index}.0", widens=level > 0 and block == 0)
            names += _transformer(f"input_blocks.{index}.1", depth)
            index += 1
        if level != last:
            names.append(f"input_blocks.{index}.0.op")
            index += 1
    names += _resnet("middle_block.0") + _transformer("middle_block.1", depths[last]) + _resnet("middle_block.2")
    index = 0
    for level in (2, 1, 0):
        for block in range(3):
            names += _resnet(
                f"output_blocks.{index}.0", widens=True
            )  # its input is concatenated with a skip connection
            names += _transformer(f"output_blocks.{index}.1", depths[level])
            if level and block == 2:
                names.append(f"output_blocks.{index}.2.conv")
            index += 1
    return frozenset(PREFIX + name.replace(".", "_") for name in names)


def _resnet(name: str, widens: bool = False) -> list[str]:
    parts = ["in_layers.2", "emb_layers.1", "out_layers.3"] + (["skip_connection"] if widens else [])
    return [f"{name}.{part}" for part in parts]


def _transformer(name: str, depth: int) -> list[str]:
    attention = [f"{a}.{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v", "to_out.0")]
    blocks = [
        f"{name}.transformer_blocks.{d}.{p}" for d in range(depth) for p in (*attention, "ff.net.0.proj", "ff.net.2")
    ]
    return [f"{name}.proj_in", *blocks, f"{name}.proj_out"] if depth else []
