"""Merges flags and YAML into one frozen `Settings` per slider. Does not import torch, so that errors appear at once."""

import argparse
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sliders.config import schema
from sliders.config.families import DEFAULT_FAMILY, FAMILIES
from sliders.config.flags import (
    DEFAULT_FOLDERS,
    DEFAULT_RANGE,
    DEFAULT_SCALES,
    EXAMPLES,
    parse_flags,
    parse_names,
    parse_scales,
    parse_text_flags,
)
from sliders.config.migration import without_xformers
from sliders.config.prompts import PromptSet, TextPromptSet, special_token
from sliders.config.sentences import sentences
from sliders.config.yaml_file import read_yaml
from sliders.system.errors import InputError

FLAG_TO_KEY = {
    "name": ("save", "name"),
    "rank": ("network", "rank"),
    "alpha": ("network", "alpha"),
    "training_method": ("network", "training_method"),
    "model": ("pretrained_model", "name_or_path"),
    "iterations": ("train", "iterations"),
    "lr": ("train", "lr"),
    "optimizer": ("train", "optimizer"),
    "seed": ("train", "seed"),
    "save_path": ("save", "path"),
    "per_steps": ("save", "per_steps"),
}


def load_settings(argv: list[str], family: str = DEFAULT_FAMILY) -> tuple[list[schema.Settings], argparse.Namespace]:
    """Returns the settings of each run (several with `--stylecheck`) and the flags. Raises InputError.

    family: a key of families.FAMILIES.
    """
    flags = parse_flags(argv, family)
    notes: list[str] = []
    config = _load_config(flags, family, notes)
    prompts = _load_prompts(config, flags, family, PromptSet, notes)
    folders, scales = _match_folders_and_scales(flags.folders, flags.scales)
    runs = []
    for folder_main, name in _main_folders(flags, config):
        data = schema.Data(folder_main=folder_main, folders=folders, scales=scales)
        runs.append(_settings(flags, family, config, prompts, data, name, notes))
    return runs, flags


def load_text_settings(
    argv: list[str], family: str = DEFAULT_FAMILY
) -> tuple[list[schema.Settings], argparse.Namespace]:
    """Like `load_settings`, for a slider that is trained from prompts alone."""
    flags = parse_text_flags(argv, family)
    notes: list[str] = []
    config = _load_config(flags, family, notes)
    prompts = _load_prompts(config, flags, family, TextPromptSet, notes)
    scales = tuple(sorted(set(flags.scales or parse_scales(DEFAULT_RANGE))))
    if len(scales) < 2:
        raise InputError(f"--scales: {scales[0]:g} alone is no range: give the lowest and the highest, such as -1, 1.")
    data = schema.TextData(scales=scales)
    return [_settings(flags, family, config, prompts, data, config.save.name, notes)], flags


def _settings(
    flags: argparse.Namespace,
    family: str,
    config: schema.Config,
    prompts: tuple[PromptSet, ...],
    data: schema.Data | schema.TextData,
    name: str,
    notes: list[str],
) -> schema.Settings:
    word = FAMILIES[family][0].in_names
    if word not in name.lower():
        name = f"{name}_{word}"
        notes = [
            *notes,
            f"save.name is {name}, because some programs know by {word!r} in a file's name what it is for.",
        ]
    save = config.save.model_copy(update={"name": validated(schema.Save, {"name": name}, "--stylecheck").name})
    rest = {k: getattr(config, k) for k in ("pretrained_model", "network", "train", "preview", "logging", "other")}
    return schema.Settings(
        config_file=flags.config_file, family=family, prompts=prompts, data=data, save=save,
        device=flags.device, overwrite=flags.overwrite, resume=flags.resume, notes=tuple(notes), **rest,
    )  # fmt: skip


def _main_folders(flags: argparse.Namespace, config: schema.Config) -> list[tuple[Path, str]]:
    """(main folder, slider name) of each run."""
    if flags.stylecheck is None:
        return [(flags.folder_main, config.save.name)]
    folders = [flags.folder_main.parent / f"{flags.folder_main.name}{i}" for i in flags.stylecheck]
    return [(folder, folder.name) for folder in folders]


def _match_folders_and_scales(folders: tuple[str, ...] | None, scales: tuple[float, ...] | None):
    """Pairs folder *i* with scale *i*; None: not given. Returns both in ascending order of scale."""
    if (folders is None) != (scales is None):
        given, other = ("--scales", "--folders") if folders is None else ("--folders", "--scales")
        listed = folders or [f"{s:g}" for s in scales or ()]
        usual = DEFAULT_FOLDERS if folders is None else DEFAULT_SCALES
        if len(listed) != len(usual.split(",")):
            raise InputError(
                f"{given} lists {len(listed)} ({', '.join(listed)}), but {other} was not given, and its default has "
                f"{len(usual.split(','))} ({usual}): add {other}, such as {other} {EXAMPLES[other]}, with one for each."
            )
    folders = parse_names(DEFAULT_FOLDERS) if folders is None else folders
    scales = parse_scales(DEFAULT_SCALES) if scales is None else scales
    if len(folders) != len(scales):
        raise InputError(
            f"--folders lists {len(folders)} ({', '.join(folders)}) but --scales lists {len(scales)} "
            f"({', '.join(f'{s:g}' for s in scales)}): give one scale per folder, with decimal points, not commas, and "
            "put a name that contains a comma in double quotes."
        )
    if len(folders) < 2:
        raise InputError(f"--folders: {', '.join(folders) or 'nothing'} is not enough: give two or more folders.")
    for what, values in (("--folders", folders), ("--scales", scales)):
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise InputError(f"{what}: {twice[0]} is given twice: give each folder a scale of its own.")
    pairs = sorted(zip(scales, folders, strict=True))
    return tuple(f for _, f in pairs), tuple(s for s, _ in pairs)


def _load_config(flags: argparse.Namespace, family: str, notes: list[str]) -> schema.Config:
    raw = read_yaml(flags.config_file, "--config_file")
    if not isinstance(raw, dict):
        raise InputError(f"{flags.config_file}: is not a YAML mapping: start from {flags.examples.format('config')}.")
    places = {}
    for flag, (section, key) in FLAG_TO_KEY.items():
        value = getattr(flags, flag)
        if value is not None:
            raw[section] = raw.get(section) or {}
            if isinstance(raw[section], dict):
                raw[section][key] = value
                places[f"{section}.{key}"] = f"--{flag}"
    if flags.prompts_file is not None:
        raw["prompts_file"] = flags.prompts_file
        places["prompts_file"] = "--prompts_file"
    _assume(raw, family, notes)
    return validated(schema.Config, raw, str(flags.config_file), places)


def _assume(raw: dict, family: str, notes: list[str]) -> None:
    """Fills in what configs of the original trainers lack, or ask for without effect, and adds a note on each."""
    model = raw["pretrained_model"] = {} if raw.get("pretrained_model") is None else raw["pretrained_model"]
    if isinstance(model, dict) and model.get("name_or_path") is None:
        usual = model["name_or_path"] = FAMILIES[family][-1 if model.get("v2") is True else 0].example
        notes.append(f"pretrained_model.name_or_path is not given, so it is {usual}; --model chooses another.")
    if note := without_xformers(raw.get("other")):
        notes.append(note)


def _load_prompts(
    config: schema.Config, flags: argparse.Namespace, family: str, kind: type[PromptSet], notes: list[str]
) -> tuple[PromptSet, ...]:
    """The prompt sets, each a `kind`, overridden by flags and repeated for each attribute."""
    example = flags.examples.format("prompts")
    if config.prompts_file is not None:
        path = _prompts_path(config.prompts_file, flags, notes)
        raw, source = read_yaml(path, "prompts_file"), str(path)
    elif kind is PromptSet:
        usual = FAMILIES[family][0]  # as in the shipped prompts-xl.yaml and prompts.yaml
        raw = [{"target": "", "resolution": usual.default_size, "guidance_scale": usual.guidance}]
        source, size = "the usual prompts", flags.resolution or usual.default_size
        notes.append(
            f"prompts_file is not given, so each image is trained at {size} px with its caption, or with an empty prompt if there "
            "are no captions; --resolution and --batch_size apply."
        )
    else:
        raise InputError(
            f"{flags.config_file}: prompts_file is missing: a text slider learns from its prompts, so add it, starting from {example}."
        )
    if not isinstance(raw, list) or not raw:
        raise InputError(f"{source}: is not a YAML list of prompt sets: start from {example}.")
    sizes = {flag: getattr(flags, flag) for flag in ("resolution", "batch_size") if getattr(flags, flag) is not None}
    places = {flag: f"--{flag}" for flag in sizes}
    sets = []
    for number, item in enumerate(raw, start=1):
        one = f"{source}, prompt set {number}"
        given = {**item, **sizes} if isinstance(item, dict) else item
        place = "--" if "resolution" in sizes else f"{one}: "
        sets.append(validated(kind, given, one, places).at(place))
    for attribute in flags.attributes:
        if token := special_token(attribute):
            raise InputError(
                f"--attributes: {attribute!r} contains {token}, which text encoders do not read as text: remove it."
            )
    if flags.attributes:
        sets = [s.with_attribute(a) for s in sets for a in flags.attributes]
    return tuple(sets)


def _prompts_path(name: str, flags: argparse.Namespace, notes: list[str]) -> Path:
    """A relative path in the config is looked for in the working directory, then beside the config; one of a flag only there."""
    path = Path(name)
    places = [path] if flags.prompts_file is not None else [path, flags.config_file.parent / path]
    found = [place for place in places if os.path.lexists(place)]
    if not found and not path.is_absolute():
        where = " and ".join(str(place.absolute()) for place in places)
        raise InputError(f"prompts_file: {path} is not there; looked for were {where}: check the path.")
    if len(found) == 2 and all(place.exists() for place in found) and not found[0].samefile(found[1]):
        notes.append(f"prompts_file: {path.absolute()} is used, and not {found[1].absolute()} beside the config.")
    return found[0] if found else path


def validated(model: type[BaseModel], raw: Any, source: str, places: dict[str, str] | None = None) -> Any:
    """Returns `raw` as a `model`. Raises InputError with one line per mistake, each with its flag or its key.

    source: the file that `raw` comes from. places: {key: flag} of the values that flags have overridden.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise InputError("\n".join(sentences(model, error.errors(), source, places or {}))) from error
