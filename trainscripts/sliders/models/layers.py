"""Selects the layers of a diffusers UNet that are adapted: `network.type` and `network.training_method`."""

from collections.abc import Callable

from torch import nn

BLOCKS = {  # {network.type: classes of the modules whose Linear and Conv2d layers are adapted}
    "lierla": ("Attention",),
    "c3lier": ("Attention", "ResnetBlock2D", "Downsample2D", "Upsample2D"),
}

# {training_method: rule(path of the block, path of the layer in it)}, as in the original trainers. noxattn adapts a
# ResNet's time_emb_proj, because only the block's path is searched for "time_embed". For these blocks innoxattn is the
# same as noxattn; it is kept for the original trainers' configs.
METHODS: dict[str, Callable[[str, str], bool]] = {
    "full": lambda block, layer: True,
    "noxattn": lambda block, layer: "attn2" not in block and "time_embed" not in block,
    "innoxattn": lambda block, layer: "attn2" not in block,
    "selfattn": lambda block, layer: "attn1" in block,
    "xattn": lambda block, layer: "attn2" in block,
    "xattn-strict": lambda block, layer: "attn2" in block and "out" not in layer,
    "noxattn-hspace": lambda block, layer: "attn2" not in block and "mid_block" in block,
    "noxattn-hspace-last": lambda block, layer: (block, layer) == ("mid_block.resnets.1", "conv2"),
}


def select_layers(unet: nn.Module, network_type: str, training_method: str) -> dict[str, nn.Linear | nn.Conv2d]:
    """Returns {module path: layer} of the layers to adapt, in the UNet's order. May be empty."""
    keep = METHODS[training_method]
    chosen = {}
    for block, module in unet.named_modules():
        if type(module).__name__ not in BLOCKS[network_type]:
            continue
        for layer, child in module.named_modules():
            if isinstance(child, nn.Linear | nn.Conv2d) and keep(block, layer):
                chosen[f"{block}.{layer}"] = child
    return chosen
