"""FLUX.2 [klein] 4B among the kinds of flow models."""

import re
from collections.abc import Mapping
from pathlib import Path

from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel

from sliders.config.families import KLEIN
from sliders.models.flow.kinds import Kind
from sliders.models.flux2.architecture import join_projections
from sliders.models.flux2.configs import NARROW, TRANSFORMER
from sliders.models.flux2.keys import DOUBLE, SINGLE
from sliders.models.flux2.single_file import KLEIN_FILE
from sliders.models.folders import read_json
from sliders.system.errors import InputError


def _check(transformer: Mapping, place: str) -> None:
    found = transformer.get("num_layers", DOUBLE), transformer.get("num_single_layers", SINGLE)
    if found[0] > DOUBLE or found[1] > SINGLE:
        raise InputError(
            f"{place}: its transformer has {found[0]} + {found[1]} blocks, and the 4B model {DOUBLE} + {SINGLE} (is it the 9B one?): "
            f"choose {KLEIN.title}."
        )


def is_distilled(name_or_path: str) -> bool:
    """Whether a model is known to be the step-distilled one: a folder says so, a hub id and a file by the usual name."""
    path = Path(name_or_path)
    if path.is_dir():
        return bool(read_json(path / "model_index.json", name_or_path).get("is_distilled"))
    return (
        re.fullmatch(r"flux[-_.]?2[-_.]klein[-_.]4b(?!.*(base|distill))([-_.].*)?", path.name, re.IGNORECASE)
        is not None
    )


KLEIN_KIND = Kind(
    facts=KLEIN,
    pipeline=Flux2KleinPipeline,
    transformer=Flux2Transformer2DModel,
    vae=AutoencoderKLFlux2,
    usual=TRANSFORMER,
    narrow=NARROW,
    fixed=("guidance_embeds", "patch_size", "in_channels"),  # what the denoiser's calls provide for
    prompt="joint_attention_dim",
    states=3,
    check=_check,
    adapted=join_projections,
    single_file=KLEIN_FILE,
)
