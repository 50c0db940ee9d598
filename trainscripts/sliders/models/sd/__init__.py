"""Stable Diffusion 1 and 2 (Rombach et al. 2022, arXiv:2112.10752)."""
