"""The modules of diffusers' Flux2Transformer2DModel, and the form of it that is adapted."""

import itertools

from diffusers import Flux2Transformer2DModel
from torch import Tensor

from sliders.models.architecture import Architecture
from sliders.models.flux2.latents import to_maps

JOINED = {"to_qkv": ("to_q", "to_k", "to_v"), "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}
TEXT_STREAM = ("to_added_qkv", "to_add_out")  # layers of a double block's attention that read or write text alone

MIXED = "image and prompt are read by the same attention layers"
NO_MIDDLE = "its blocks have no bottleneck, in whose middle h-space is"


def join_projections(transformer: Flux2Transformer2DModel) -> Flux2Transformer2DModel:
    """Makes query, key and value of each stream of the double blocks one layer, as in the original checkpoint.

    The files that trainers of this model write, and programs read, have one adaptor for the three. So ours has, too.
    """
    for block in transformer.transformer_blocks:
        block.attn.fuse_projections()
        for name in itertools.chain(*JOINED.values()):
            if hasattr(block.attn, name):
                delattr(block.attn, name)
    return transformer


def _not_of_text(block: str, layer: str) -> bool:
    return layer not in TEXT_STREAM and not block.endswith(".ff_context")


def _image_of(output: Tensor | tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """A double block returns (text, image), a single block the tokens of both, text first."""
    tokens = output[1] if isinstance(output, tuple) else output[:, -size[0] * size[1] :]
    return to_maps(tokens, size)


FLUX2 = Architecture(
    # A single block's two layers compute attention and feed-forward at once, so they belong to both types.
    adapted={
        "lierla": ("Flux2Attention", "Flux2ParallelSelfAttention"),
        "c3lier": ("Flux2Attention", "Flux2ParallelSelfAttention", "Flux2FeedForward"),
    },
    methods={"full": lambda block, layer: True, "noxattn": _not_of_text},
    inside=("transformer_blocks.", "single_transformer_blocks."),
    compiled=("Flux2TransformerBlock", "Flux2SingleTransformerBlock"),
    quantized="transformer_blocks.",  # of both kinds; embedders, modulation and output stay in high precision
    blocks=lambda transformer: [*transformer.transformer_blocks, *transformer.single_transformer_blocks[::4]],
    image_of=_image_of,
    refused={
        **dict.fromkeys(("innoxattn", "selfattn", "xattn", "xattn-strict"), MIXED),
        **dict.fromkeys(("noxattn-hspace", "noxattn-hspace-last"), NO_MIDDLE),
    },
)
