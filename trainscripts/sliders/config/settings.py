"""Merges flags and YAML into one frozen `Settings` per slider. Does not import torch, so that errors appear at once."""

import argparse
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sliders.config import flags as command_line
from sliders.config import schema
from sliders.config.families import DEFAULT_FAMILY, FAMILIES
from sliders.config.migration import without_xformers
from sliders.config.prompts import PromptSet, TextPromptSet, special_token
from sliders.config.sentences import sentences
from sliders.config.yaml_file import read_yaml
from sliders.system.errors import InputError


def load_settings(argv: list[str], family: str = DEFAULT_FAMILY) -> tuple[list[schema.Settings], argparse.Namespace]:
    """Returns the settings of each run (several with `--stylecheck`) and the flags. Raises InputError.

    family: a key of families.FAMILIES.
    """
    flags = command_line.parse_flags(argv, command_line.build_parser(family))
    experiment = _load_experiment(flags, family, PromptSet)
    folders, scales = command_line.match_folders_and_scales(flags.folders, flags.scales)
    mains = [flags.folder_main]
    if flags.stylecheck is not None:
        mains = [flags.folder_main.parent / f"{flags.folder_main.name}{i}" for i in flags.stylecheck]
    runs = []
    for main in mains:
        chosen = {"leave_out": flags.leave_out, "incomplete": flags.incomplete}
        run = {"data": schema.Data(folder_main=main, folders=folders, scales=scales, **chosen)}
        if flags.stylecheck is not None:
            name = validated(schema.Save, {"name": main.name}, "--stylecheck").name
            run["save"] = experiment["save"].model_copy(update={"name": name})
        runs.append(_named(schema.Settings(**experiment | run)))
    return runs, flags


def load_text_settings(
    argv: list[str], family: str = DEFAULT_FAMILY
) -> tuple[list[schema.Settings], argparse.Namespace]:
    """Like `load_settings`, for a slider that is trained from prompts alone."""
    flags = command_line.parse_flags(argv, command_line.build_text_parser(family))
    experiment = _load_experiment(flags, family, TextPromptSet)
    data = schema.TextData(scales=command_line.range_of(flags.scales))
    return [_named(schema.Settings(data=data, **experiment))], flags


def _named(settings: schema.Settings) -> schema.Settings:
    """Adds the word by which programs know the family's files to the slider's name, if that lacks it."""
    word, name = FAMILIES[settings.family][0].in_names, settings.save.name
    if word in name.lower():
        return settings
    renamed = validated(schema.Save, {"name": f"{name}_{word}"}, "save.name").name
    note = f"save.name is {renamed}, because some programs know by {word!r} in a file's name what it is for."
    save = settings.save.model_copy(update={"name": renamed})
    return settings.model_copy(update={"save": save, "notes": (*settings.notes, note)})


def _load_experiment(flags: argparse.Namespace, family: str, kind: type[PromptSet]) -> dict[str, Any]:
    """All settings but the data. kind: of the prompt sets."""
    notes: list[str] = []
    config = _load_config(flags, family, notes)
    prompts = _load_prompts(config, flags, family, kind, notes)
    sections = {key: getattr(config, key) for key in schema.Config.model_fields}
    return {
        "config_file": flags.config_file, "family": family, "prompts": prompts, "notes": tuple(notes), **sections,
        **{flag: getattr(flags, flag) for flag in ("device", "overwrite", "resume")},
    }  # fmt: skip


def _load_config(flags: argparse.Namespace, family: str, notes: list[str]) -> schema.Config:
    raw = read_yaml(flags.config_file, "--config_file")
    if not isinstance(raw, dict):
        raise InputError(f"{flags.config_file}: is not a YAML mapping: start from {flags.examples.format('config')}.")
    places = {}
    for flag, (section, key, _) in command_line.OVERRIDES.items():
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
    sizes = {flag: getattr(flags, flag) for flag in command_line.SIZES if getattr(flags, flag) is not None}
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
