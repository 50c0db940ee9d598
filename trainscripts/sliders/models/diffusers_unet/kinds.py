"""The kinds of models: what tells one from another, and what the denoiser's calls take for granted."""

from collections.abc import Mapping
from dataclasses import dataclass

from sliders.config import families
from sliders.config.families import Facts
from sliders.models.diffusers_unet.keys import UNET_PREFIX
from sliders.models.folders import Weights
from sliders.models.objective import EPSILON, V_PREDICTION
from sliders.system.errors import InputError

LATENT_CHANNELS = 4
OTHER_CHANNELS = {5: "a depth model", 7: "an upscaling model", 8: "an instruct-pix2pix model", 9: "an inpainting model"}
UNET_USUAL = {  # values of its config, besides none, that the denoiser's calls provide for
    "out_channels": LATENT_CHANNELS, "time_cond_proj_dim": None, "class_embed_type": None, "num_class_embeds": None,
    "encoder_hid_dim_type": None,
}  # fmt: skip
VAE_USUAL = {"latent_channels": LATENT_CHANNELS, "latents_mean": None, "latents_std": None, "shift_factor": None}
TIME_IDS = 6  # original size, crop and target size


@dataclass(frozen=True)
class Kind:
    """A kind of model, with what tells it from the others."""

    facts: Facts
    parts: tuple[str, ...]
    prediction: str  # of its usual model


SD_PARTS = ("unet", "vae", "text_encoder")
SDXL = Kind(families.SDXL, (*SD_PARTS, "text_encoder_2"), EPSILON)
SD1 = Kind(families.SD1, SD_PARTS, EPSILON)
SD2 = Kind(families.SD2, SD_PARTS, V_PREDICTION)


def kind_of_file(keys: Mapping[str, str], weights: Weights) -> Kind | None:
    """By the text encoders, and if there are none by the UNet, whose projections are linear in SD 2, convolutions in SD 1."""
    if any(k.startswith("conditioner.embedders.") for k in keys):
        return SDXL
    projection = weights.stored.get(f"{UNET_PREFIX}input_blocks.1.1.proj_in.weight")
    linear = projection is not None and len(projection.shape) == 2
    if any(k.startswith("cond_stage_model.model.") for k in keys):
        return SD2
    if any(k.startswith("cond_stage_model.transformer.") for k in keys):
        return SD2 if linear else SD1
    if f"{UNET_PREFIX}label_emb.0.0.weight" in keys:
        return SDXL
    return None if projection is None else SD2 if linear else SD1


def kind_of_unet(config: Mapping) -> Kind:
    """config: of a UNet2DConditionModel. SD 2's transformers project with linear layers, SD 1's with convolutions."""
    if config.get("addition_embed_type") == "text_time":
        return SDXL
    return SD2 if config.get("use_linear_projection") else SD1


def check_unet(config: Mapping, wanted: Kind, place: str) -> None:
    """Raises InputError if a UNet with this config is not that of a base model of the wanted kind."""
    check_channels(place, config.get("in_channels", LATENT_CHANNELS), wanted)
    found = kind_of_unet(config)
    if found is not wanted:
        raise InputError(
            f"{place} is {found.facts.a} model, not {wanted.facts.a} one: choose {wanted.facts.a} model, or use {found.facts.use}."
        )


def check_channels(place: str, channels: int, wanted: Kind) -> None:
    """Raises InputError unless the UNet's input is latents alone."""
    if channels != LATENT_CHANNELS:
        other = OTHER_CHANNELS.get(channels, "an inpainting model or a refiner?")
        raise InputError(not_a_base_model(place, wanted, f"{other}, whose UNet takes {channels} channels"))


def not_a_base_model(place: str, wanted: Kind, what: str) -> str:
    return f"{place} is not {wanted.facts.a} base model ({what}): choose a base model."


def check_parts(configs: Mapping[str, Mapping], place: str) -> None:
    """Raises InputError for settings of UNet and VAE that neither training nor sampling here provides for."""
    for part, usual in (("unet", UNET_USUAL), ("vae", VAE_USUAL)):
        for key, value in usual.items():
            if (found := configs[part].get(key)) not in (value, None):
                reason = ", by which EDM's latents are normalised," if key.startswith("latents_") else ""
                only = "null" if value is None else value
                raise InputError(
                    f"{place}: {part}/config.json: {key}: {str(found)[:60]}{reason} is not supported, only {only}: choose another model."
                )
    unet = configs["unet"]
    encoders = [configs[part] for part in ("text_encoder", "text_encoder_2") if part in configs]
    widths = [config.get("hidden_size", 512) for config in encoders]
    if unet.get("cross_attention_dim") != sum(widths):
        raise InputError(
            f"{place}: its UNet reads prompts of {unet.get('cross_attention_dim')} values per token (cross_attention_dim), but its text "
            f"encoders give {' + '.join(map(str, widths))}: use a complete folder of one model."
        )
    if len(encoders) == 2:
        pooled = encoders[1].get("projection_dim", 512)
        wanted = TIME_IDS * (unet.get("addition_time_embed_dim") or 0) + pooled
        if unet.get("projection_class_embeddings_input_dim") != wanted:
            raise InputError(
                f"{place}: its UNet reads {unet.get('projection_class_embeddings_input_dim')} values besides the prompt's tokens "
                f"(projection_class_embeddings_input_dim), not {wanted}, as a base model does (a refiner?): choose a base model."
            )
