"""The narrow transformers of flow-matching families in the form that is adapted, and small inputs for them."""

from functools import partial

import torch
from sliders.models.flux2.architecture import join_projections
from sliders.models.flux2.latents import image_places, text_places
from sliders.models.flux2.narrow import build_narrow_klein
from sliders.models.zimage.narrow import build_narrow_zimage
from sliders.models.zimage.transformer import stacked

SIZE = (2, 2)  # of the image, in patches
TEXT = 4  # tokens of a prompt


def klein(dtype=torch.float32):
    """(transformer, its inputs) for two rows with different noise levels."""
    transformer = join_projections(build_narrow_klein().transformer)
    transformer.single_transformer_blocks = transformer.single_transformer_blocks[:1]
    generator = torch.Generator().manual_seed(3)
    tokens, text = (
        torch.randn(2, n, width, generator=generator).to(dtype)
        for n, width in ((SIZE[0] * SIZE[1], 128), (TEXT, transformer.config.joint_attention_dim))
    )
    inputs = {
        "hidden_states": tokens,
        "encoder_hidden_states": text,
        "timestep": torch.tensor([0.3, 0.9]),
        "img_ids": image_places(SIZE, "cpu"),
        "txt_ids": text_places(TEXT, "cpu"),
    }
    return _ready(transformer, dtype), inputs | {"return_dict": False}


def zimage(masked, dtype=torch.float32):
    """(transformer, its inputs) for two rows with different noise levels. masked: one prompt has tokens that are not read."""
    transformer = stacked(build_narrow_zimage().transformer)
    transformer.layers = transformer.layers[:1]
    generator = torch.Generator().manual_seed(3)
    noisy, tokens = (
        torch.randn(size, generator=generator).to(dtype)
        for size in ((2, 16, 2 * SIZE[0], 2 * SIZE[1]), (2, TEXT, transformer.config.cap_feat_dim))
    )
    places = torch.arange(TEXT)
    inputs = {
        "noisy": noisy,
        "time": torch.tensor([0.7, 0.1]),
        "tokens": tokens,
        "of_prompt": places < torch.tensor([[1], [3]]),
    }
    if masked:
        inputs["attended"] = places < torch.tensor([[2], [4]])
    return _ready(transformer, dtype), inputs


def _ready(transformer, dtype):
    """Frozen, with norms and modulation that are not those of a new model: what leaves them out computes something else."""
    generator = torch.Generator().manual_seed(4)
    for name, parameter in transformer.requires_grad_(False).named_parameters():
        if "norm" in name and parameter.ndim == 1:
            parameter.copy_(1 + torch.randn(parameter.shape, generator=generator) / 2)
        elif "odulation" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return transformer.to(dtype)


FLOWS = {"klein": klein, "zimage": partial(zimage, False), "zimage, masked": partial(zimage, True)}
