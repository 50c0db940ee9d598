"""Names of a UNet's modules in the original checkpoints (CompVis' latent diffusion, and SGM for SDXL)."""

import re
from collections.abc import Callable

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
