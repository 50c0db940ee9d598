"""Model families. What is true of one family only lives in its folder; `FAMILIES` lists them."""

from sliders.models.base import Family
from sliders.models.quiet import silence_libraries
from sliders.models.sdxl.family import SDXL_FAMILY

silence_libraries()

FAMILIES: dict[str, Family] = {"sdxl": SDXL_FAMILY}
