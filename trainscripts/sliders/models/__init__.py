"""Model families. Everything specific to one is in its folder; `FAMILIES` lists them."""

from sliders.models.base import Family
from sliders.models.quiet import silence_libraries
from sliders.models.sdxl.family import SDXL_FAMILY

silence_libraries()

FAMILIES: dict[str, Family] = {"sdxl": SDXL_FAMILY}
