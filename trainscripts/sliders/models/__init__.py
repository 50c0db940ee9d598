"""Model families. Everything specific to one is in its folder; `FAMILIES` lists them."""

from sliders.config.schema import PretrainedModel
from sliders.models.base import Family
from sliders.models.flux2.family import KLEIN_FAMILY
from sliders.models.quiet import hide_progress_bars
from sliders.models.sd.family import SD1_FAMILY, SD2_FAMILY
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.zimage.family import ZIMAGE_FAMILY

hide_progress_bars()

FAMILIES: dict[str, Family] = {  # the names are those of config.families
    "sdxl": SDXL_FAMILY,
    "sd": SD1_FAMILY,
    "flux2": KLEIN_FAMILY,
    "zimage": ZIMAGE_FAMILY,
}

VERSIONS: tuple[Family, ...] = (SDXL_FAMILY, SD1_FAMILY, SD2_FAMILY, KLEIN_FAMILY, ZIMAGE_FAMILY)  # of all families


def find_family(name: str, settings: PretrainedModel) -> Family:
    """The family of this name, in the version that the settings ask for. Plans keep it for everyone after them."""
    return FAMILIES[name].variant(settings)
