"""Z-Image among the kinds of flow models, and Turbo told apart from the base model."""

import re
from collections.abc import Mapping
from pathlib import Path

from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel

from sliders.config.families import ZIMAGE
from sliders.models.flow.kinds import Kind
from sliders.models.folders import read_json
from sliders.models.zimage.configs import NARROW, TRANSFORMER, TURBO_SHIFT
from sliders.models.zimage.keys import LAYERS
from sliders.models.zimage.single_file import ZIMAGE_FILE
from sliders.models.zimage.transformer import stacked
from sliders.system.errors import InputError


def _check(transformer: Mapping, place: str) -> None:
    found = transformer.get("n_layers", LAYERS)
    if found > LAYERS:
        raise InputError(
            f"{place}: its transformer has {found} layers, and Z-Image {LAYERS}, whose names alone programs know: choose "
            f"{ZIMAGE.title}."
        )


def is_turbo(name: str, shift: float | None) -> bool:
    """Whether a model is the step-distilled one, as its name says, or else its sampler's shift, None if that is not known."""
    if found := re.search(r"(?<![a-z])(de[-_ ]?)?turbo", Path(name).name, re.IGNORECASE):
        return found[1] is None
    return shift == TURBO_SHIFT


def shift_of(name_or_path: str) -> float | None:
    """The shift of a folder's sampler, None for hub ids and files. Raises InputError."""
    path = Path(name_or_path)
    if not path.is_dir():
        return None
    return read_json(path / "scheduler" / "scheduler_config.json", name_or_path).get("shift")


ZIMAGE_KIND = Kind(
    facts=ZIMAGE,
    pipeline=ZImagePipeline,
    transformer=ZImageTransformer2DModel,
    vae=AutoencoderKL,
    usual=TRANSFORMER,
    narrow=NARROW,
    fixed=("all_patch_size", "all_f_patch_size", "in_channels", "siglip_feat_dim"),  # what its calls provide for
    prompt="cap_feat_dim",
    states=1,
    check=_check,
    adapted=stacked,
    single_file=ZIMAGE_FILE,
)
