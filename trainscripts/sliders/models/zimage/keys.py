"""Names of the transformer's modules in slider files: `diffusion_model.` and the name in diffusers.

AI Toolkit writes these names. ComfyUI, Forge Neo, SD.Next, InvokeAI and diffusers resolve all of them, without alpha.
"""

from itertools import product

PREFIX = "diffusion_model."
LAYERS, REFINERS = 30, 2  # of the full model; it has two kinds of refiners


def file_key(module: str) -> str:
    """`layers.0.attention.to_q` → `diffusion_model.layers.0.attention.to_q`"""
    return PREFIX + module


def zimage_file_keys() -> frozenset[str]:
    """The prefixes for all Linear layers in the layers and refiners of the full model. Those of the context have no modulation."""
    attention = [f"attention.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
    plain = [*attention, *(f"feed_forward.w{number}" for number in (1, 2, 3))]
    parts = {"layers": (LAYERS, True), "noise_refiner": (REFINERS, True), "context_refiner": (REFINERS, False)}
    return frozenset(
        f"{PREFIX}{blocks}.{block}.{part}"
        for blocks, (count, modulated) in parts.items()
        for block, part in product(range(count), [*plain, "adaLN_modulation.0"] if modulated else plain)
    )
