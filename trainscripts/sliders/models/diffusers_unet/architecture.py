"""The modules of diffusers' UNet2DConditionModel."""

from sliders.models.architecture import Architecture

UNET = Architecture(
    adapted={
        "lierla": ("Attention",),
        "c3lier": ("Attention", "ResnetBlock2D", "Downsample2D", "Upsample2D"),
    },
    # As in the original trainers. noxattn adapts a ResNet's time_emb_proj, because only the block's path is searched for
    # "time_embed". Here innoxattn is the same as noxattn; it is kept for the original trainers' configs.
    methods={
        "full": lambda block, layer: True,
        "noxattn": lambda block, layer: "attn2" not in block and "time_embed" not in block,
        "innoxattn": lambda block, layer: "attn2" not in block,
        "selfattn": lambda block, layer: "attn1" in block,
        "xattn": lambda block, layer: "attn2" in block,
        "xattn-strict": lambda block, layer: "attn2" in block and "out" not in layer,
        "noxattn-hspace": lambda block, layer: "attn2" not in block and "mid_block" in block,
        "noxattn-hspace-last": lambda block, layer: (block, layer) == ("mid_block.resnets.1", "conv2"),
    },
    inside=("down_blocks.", "mid_block.", "up_blocks."),
    compiled=("BasicTransformerBlock", "ResnetBlock2D"),
    quantized=".attentions.",
    blocks=lambda unet: [*unet.down_blocks, unet.mid_block, *unet.up_blocks],
    image_of=lambda output, size: (
        output[0] if isinstance(output, tuple) else output
    ),  # the rest is for skip connections
)
