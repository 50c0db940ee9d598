"""Concept sliders for SDXL and Stable Diffusion, trained from folders of images at fractional, asymmetric multipliers."""

import logging
import os

__version__ = "0.2.0"

# Before any of them is imported: what they print then ("requires torchvision", "Failed to load CPU gemm_4bit_forward")
# gives a user nothing to act on.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
