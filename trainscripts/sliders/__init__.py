"""Concept sliders for SDXL, trained from folders of images at fractional, asymmetric multipliers."""

__version__ = "0.1.0"
