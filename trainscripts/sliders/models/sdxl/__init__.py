"""SDXL (Podell et al. 2023, arXiv:2307.01952)."""
