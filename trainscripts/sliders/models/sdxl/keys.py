"""Names of SDXL's UNet modules in slider files: `lora_unet_` and the name in the original checkpoint (SGM).

kohya's scripts write these names, the only ones that A1111, Forge, ComfyUI and diffusers all resolve completely.
"""

import re
from functools import cache

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
    # index 2, after ResNet and attention, which precede both of SDXL's upsamplers
    (r"up_blocks\.(\d+)\.upsamplers\.0\.conv", lambda i: f"output_blocks.{2 + 3 * i}.2.conv"),
)


def sgm_name(module: str) -> str:
    """`down_blocks.1.attentions.0.proj_in` → `input_blocks.4.1.proj_in`. Raises KeyError for modules of other paths."""
    for pattern, place in PLACES:
        match = re.match(rf"{pattern}(?:\.(.+))?$", module)
        if match:
            *indices, inner = match.groups()
            if "resnets" in pattern and inner is not None:
                inner = RESNET_PARTS[inner]
            return place(*map(int, indices)) + (f".{inner}" if inner else "")
    raise KeyError(module)


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
