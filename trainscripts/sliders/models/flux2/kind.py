"""FLUX.2 [klein] 4B among the kinds of flow models."""

from collections.abc import Mapping

from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel

from sliders.config.families import KLEIN
from sliders.models.flow.kinds import Kind
from sliders.models.flux2.architecture import join_projections
from sliders.models.flux2.configs import NARROW, TRANSFORMER
from sliders.models.flux2.keys import DOUBLE, SINGLE
from sliders.models.flux2.single_file import KLEIN_FILE
from sliders.system.errors import InputError


def _check(transformer: Mapping, place: str) -> None:
    found = transformer.get("num_layers", DOUBLE), transformer.get("num_single_layers", SINGLE)
    if found[0] > DOUBLE or found[1] > SINGLE:
        raise InputError(
            f"{place}: its transformer has {found[0]} + {found[1]} blocks, and the 4B model {DOUBLE} + {SINGLE} (is it the 9B one?): "
            f"choose {KLEIN.title}."
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
