"""`other.torch_compile`: compiled where it stands, so that no module is renamed."""

import torch
from torch import nn

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
RECOMPILE_LIMIT = 64  # the ResNets alone have more shapes than torch's default of 8 allows before it gives up


def compile_unet(unet: nn.Module, extent: str, backend: str = "inductor") -> int:
    """`extent`: regional compiles each of the repeated blocks, full the UNet as one, off nothing; returns how many
    pieces that makes. Costs minutes at the first step, saves at every one."""
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    blocks = [m for m in unet.modules() if type(m).__name__ in BLOCKS]
    pieces = {"off": [], "regional": blocks, "full": [unet]}[extent]
    for piece in pieces:
        piece.compile(backend=backend)
    return len(pieces)
