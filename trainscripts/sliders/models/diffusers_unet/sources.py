"""Checks where a model comes from, of which kind it is, and that it is whole, before its weights are loaded."""

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusers import SchedulerMixin

from sliders.config.schema import PretrainedModel
from sliders.models.diffusers_unet import components, inventory, keys, noise
from sliders.models.diffusers_unet.inventory import Found
from sliders.models.diffusers_unet.kinds import (
    SDXL,
    Kind,
    check_channels,
    check_parts,
    check_unet,
    kind_of_file,
    not_a_base_model,
)
from sliders.models.diffusers_unet.narrow import build_scheduler
from sliders.models.diffusers_unet.noise import Statement
from sliders.models.diffusers_unet.weightless import shapes_of
from sliders.models.folders import Weights, is_quantised, part_config, part_weights, read_json
from sliders.models.places import HUB_ID, PARTS, TINY, loading, place_of
from sliders.system.errors import InputError
from sliders.system.files import cannot_be_read, is_missing
from sliders.system.weight_files import open_weights

SUFFIXES = (".safetensors", ".ckpt")


@dataclass(frozen=True)
class Part:
    """A part of a pipeline: what its config.json says, and where its weights are."""

    config: Mapping
    weights: Weights
    found: Mapping[str, Found]  # by parameter


@dataclass(frozen=True)
class Source:
    """A model that has passed every check that needs no weights."""

    folder: Path | None  # with JSON and tokenizer files; None: the hub's, for a single file
    parts: Mapping[str, Part]  # none if diffusers stored them quantised, and has to load them itself
    scheduler: SchedulerMixin
    own: bool  # whether the scheduler is the model's own, not that of a single file's JSON files
    statement: Statement


def check_source(settings: PretrainedModel, wanted: Kind, base: Mapping[str, Mapping]) -> Source | None:
    """Returns what a folder or file contains, None for hub ids, which are not looked up, and for `tiny`.

    base: the configs of the usual model's parts, for a single file whose JSON files are not at hand. Raises InputError if
    the model does not exist, cannot be read, is not of the wanted kind, not whole, or of another noise.
    """
    name, path, place = settings.name_or_path, Path(settings.name_or_path), place_of(settings)
    if name == TINY:
        return None
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        if not is_missing(path, error) or path.suffix.lower() in SUFFIXES:
            raise InputError(f"{place} {cannot_be_read(path, error)}.") from error
        if re.fullmatch(HUB_ID, name):
            return None
        raise InputError(
            f"{place} is neither an existing folder, .safetensors or .ckpt file, nor a hub id like {wanted.facts.example}: check it."
        ) from error
    json_files = None if is_folder else _json_files(settings, wanted)
    source = inspect_folder(path, place, wanted) if is_folder else inspect_file(path, place, wanted, json_files, base)
    noise.find_noise(settings, source.scheduler, source.own, source.statement, place)
    return source


def _json_files(settings: PretrainedModel, wanted: Kind) -> Path | None:
    """The folder `pretrained_model.config`, checked."""
    if settings.config is None:
        return None
    folder, place = Path(settings.config), f"pretrained_model.config: {settings.config}"
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{place} contains no model_index.json: use a diffusers folder.")
    components.check_components(folder, place, wanted.parts)
    check_unet(part_config(folder, "unet", place), wanted, place)
    return folder


def inspect_folder(folder: Path, place: str, wanted: Kind) -> Source:
    """Raises InputError unless a diffusers folder holds a whole model of the wanted kind."""
    name = str(read_json(folder / "model_index.json", place).get("_class_name"))
    config = components.unet_config(folder)
    if config is not None and name.startswith("StableDiffusion"):
        check_unet(config, wanted, place)
    if not re.match("StableDiffusionXL" if wanted is SDXL else "StableDiffusion(?!3|XL)", name):
        raise InputError(
            f"{place} is a {name}, but only {wanted.facts.title} is supported: choose {wanted.facts.a} model."
        )
    components.check_components(folder, place, wanted.parts)
    configs = {part: part_config(folder, part, place) for part in wanted.parts}
    check_parts(configs, place)
    scheduler = _scheduler(folder, place)
    if is_quantised(folder):
        return Source(folder, {}, scheduler, True, Statement())
    parts = {}
    for part, config in configs.items():
        weights = part_weights(folder, part, place)
        inside = f"{place}: {part}"
        inventory.check_foreign(weights, inside)
        shapes = _shapes(part, config, place)
        spelled = keys.usual_spellings(weights.stored, keys.FOLDER_SPELLINGS)
        found = inventory.find_parameters(part, shapes, keys.folder_origins(shapes, spelled), spelled, weights, inside)
        inventory.check_rest(_used(found), spelled, weights, inside)
        parts[part] = Part(config, weights, found)
    return Source(folder, parts, scheduler, True, Statement())


def inspect_file(
    path: Path, place: str, wanted: Kind, folder: Path | None, base: Mapping[str, Mapping]
) -> Source:  # fmt: skip
    """Raises InputError unless a single file holds a whole model of the wanted kind. folder: with its JSON files, if known."""
    weights = Weights([open_weights(path, place)])
    spelled = keys.usual_spellings(weights.stored, keys.SPELLINGS)
    _check_kind(place, spelled, weights, wanted)
    inventory.check_foreign(weights, place)
    statement = noise.read_statement(weights, place)
    json_place = f"pretrained_model.config: {folder}"
    configs = base if folder is None else {p: part_config(folder, p, json_place) for p in wanted.parts}
    check_parts(configs, json_place)
    shapes = {part: _shapes(part, configs[part], json_place) for part in wanted.parts}
    origins = {part: keys.single_file_origins(part, shapes[part], configs[part], spelled) for part in wanted.parts}
    absent = [PARTS[p] for p in wanted.parts if not any(origin.key in spelled for origin in origins[p].values())]
    if absent:
        raise InputError(
            f"{place} contains no {' and no '.join(absent)}: choose a complete {wanted.facts.title} checkpoint, with UNet, VAE and text "
            "encoders in one file."
        )
    parts = {}
    for part, config in configs.items():
        found = inventory.find_parameters(part, shapes[part], origins[part], spelled, weights, place)
        parts[part] = Part(config, weights, found)
    inventory.check_rest({key for part in parts.values() for key in _used(part.found)}, spelled, weights, place)
    _check_scale_factor(weights, configs["vae"], place)
    scheduler = build_scheduler(wanted.prediction) if folder is None else _scheduler(folder, json_place)
    return Source(folder, parts, scheduler, False, statement)


def _used(found: Mapping[str, Found]) -> set[str]:
    return {key for place in found.values() for key in (place.origin.key, place.scale) if key is not None}


def _scheduler(folder: Path, place: str) -> SchedulerMixin:
    config = read_json(folder / "scheduler" / "scheduler_config.json", place)
    return noise.read_scheduler(config, f"{place}: scheduler/scheduler_config.json")


def _shapes(part: str, config: Mapping, place: str) -> dict[str, tuple[int, ...]]:
    with loading(part, place):
        return shapes_of(part, config)


def _check_kind(place: str, spelled: Mapping[str, str], weights: Weights, wanted: Kind) -> None:
    found = kind_of_file(spelled, weights)
    if found is None:
        raise InputError(
            f"{place} is not {wanted.facts.a} checkpoint (a LoRA, a UNet alone?): choose {wanted.facts.a} one."
        )
    if found is not wanted:
        raise InputError(
            f"{place} is not {wanted.facts.a} checkpoint but {found.facts.a} one: choose {wanted.facts.a} one, or use {found.facts.use}."
        )
    first = weights.stored.get(f"{keys.UNET_PREFIX}input_blocks.0.0.weight")
    if first is not None and len(first.shape) == 4:
        check_channels(place, first.shape[1], wanted)
    if any(k.startswith("conditioner.embedders.0.model.") for k in spelled):
        raise InputError(not_a_base_model(place, wanted, "a refiner"))


def _check_scale_factor(weights: Weights, vae: Mapping, place: str) -> None:
    """A file may hold the factor from the VAE's output to latents. Raises InputError if it is not the config's."""
    if "scale_factor" in weights.stored:
        found, wanted = float(weights.read(["scale_factor"])["scale_factor"]), vae["scaling_factor"]
        if abs(found - wanted) > 0.01 * wanted:
            raise InputError(
                f"{place}: its scale_factor is {found:.5g}, but the VAE's is {wanted:.5g}: choose the folder with its JSON files as "
                "pretrained_model.config."
            )
