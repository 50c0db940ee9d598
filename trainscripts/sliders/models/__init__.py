"""Model families. Everything specific to one is in its folder; `FAMILIES` lists them."""

from sliders.models.base import Family
from sliders.models.quiet import hide_progress_bars
from sliders.models.sdxl.family import SDXL_FAMILY

hide_progress_bars()

FAMILIES: dict[str, Family] = {"sdxl": SDXL_FAMILY}
