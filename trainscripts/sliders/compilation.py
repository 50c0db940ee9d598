"""`other.torch_compile`: the UNet's repeated blocks, compiled where they stand, so that no module is renamed."""

import torch
from torch import nn

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
RECOMPILE_LIMIT = 64  # the ResNets alone have more shapes than torch's default of 8 allows before it gives up


def compile_blocks(unet: nn.Module, backend: str = "inductor") -> int:
    """Compile each block in place; returns how many there are. Costs minutes at the first step, saves at every one."""
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    blocks = [m for m in unet.modules() if type(m).__name__ in BLOCKS]
    for block in blocks:
        block.compile(backend=backend)
    return len(blocks)
