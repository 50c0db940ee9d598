"""Z-Image (Tongyi-MAI 2025): a rectified flow on latents, predicted by a transformer over patches and the prompt's tokens."""
