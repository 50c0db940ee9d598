"""FLUX.2 [klein] 4B (Black Forest Labs 2026): a rectified flow on patches of latents, predicted by a transformer."""
