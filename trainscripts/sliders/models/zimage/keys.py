"""Names of the transformer's modules in slider files: `diffusion_model.` and the name in diffusers.

AI Toolkit writes these names. ComfyUI, Forge Neo, SD.Next, InvokeAI and diffusers resolve all of them, without alpha.
"""

from itertools import product

PREFIX = "diffusion_model."
LAYERS = 30  # of the full model


def file_key(module: str) -> str:
    """`layers.0.attention.to_q` → `diffusion_model.layers.0.attention.to_q`"""
    return PREFIX + module


def zimage_file_keys() -> frozenset[str]:
    """The prefixes for all Linear layers in the layers of the full model."""
    attention = [f"attention.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
    parts = [*attention, *(f"feed_forward.w{number}" for number in (1, 2, 3)), "adaLN_modulation.0"]
    return frozenset(f"{PREFIX}layers.{layer}.{part}" for layer, part in product(range(LAYERS), parts))
