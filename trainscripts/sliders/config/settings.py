"""Merges flags and YAML into one frozen `Settings` per slider. Does not import torch, so that errors appear at once."""

import argparse
import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from sliders.config import schema
from sliders.config.flags import parse_flags, parse_text_flags
from sliders.config.prompts import PromptSet, TextPromptSet, special_token
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
MAX_PAIRS = 1000
MAX_YAML_BYTES = 1_000_000


def load_settings(
    argv: list[str], family: str = schema.DEFAULT_FAMILY
) -> tuple[list[schema.Settings], argparse.Namespace]:
    """Returns the settings of each run (several with `--stylecheck`) and the flags. Raises InputError.

    family: a key of schema.FAMILY_ENDINGS.
    """
    flags = parse_flags(argv, family)
    config = _load_config(flags)
    prompts = _load_prompts(config, flags, PromptSet)
    folders, scales = _match_folders_and_scales(flags.folders, flags.scales)
    runs = []
    for folder_main, name in _main_folders(flags, config):
        data = schema.Data(folder_main=folder_main, folders=folders, scales=scales)
        runs.append(_settings(flags, family, config, prompts, data, name))
    return runs, flags


def load_text_settings(
    argv: list[str], family: str = schema.DEFAULT_FAMILY
) -> tuple[list[schema.Settings], argparse.Namespace]:
    """Like `load_settings`, for a slider that is trained from prompts alone."""
    flags = parse_text_flags(argv)
    config = _load_config(flags)
    prompts = _load_prompts(config, flags, TextPromptSet)
    scales = tuple(sorted(set(flags.scales)))
    if len(scales) < 2:
        raise InputError(f"--scales: {scales[0]:g} alone is no range: give the lowest and the highest, such as -1, 1.")
    return [_settings(flags, family, config, prompts, schema.TextData(scales=scales), config.save.name)], flags


def _settings(
    flags: argparse.Namespace,
    family: str,
    config: schema.Config,
    prompts: tuple[PromptSet, ...],
    data: schema.Data | schema.TextData,
    name: str,
) -> schema.Settings:
    save = config.save.model_copy(update={"name": validated(schema.Save, {"name": name}, "--stylecheck").name})
    rest = {k: getattr(config, k) for k in ("pretrained_model", "network", "train", "preview", "logging", "other")}
    return schema.Settings(
        config_file=flags.config_file, family=family, prompts=prompts, data=data, save=save,
        device=flags.device, overwrite=flags.overwrite, resume=flags.resume, **rest,
    )  # fmt: skip


def _main_folders(flags: argparse.Namespace, config: schema.Config) -> list[tuple[Path, str]]:
    """(main folder, slider name) of each run."""
    if flags.stylecheck is None:
        return [(flags.folder_main, config.save.name)]
    folders = [flags.folder_main.parent / f"{flags.folder_main.name}{i}" for i in flags.stylecheck]
    return [(folder, folder.name) for folder in folders]


def _match_folders_and_scales(folders: tuple[str, ...], scales: tuple[float, ...]):
    """Pairs folder *i* with scale *i*. Returns both in ascending order of scale."""
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


def _load_config(flags: argparse.Namespace) -> schema.Config:
    raw = _read_yaml(flags.config_file, "--config_file")
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
    return validated(schema.Config, raw, str(flags.config_file), places)


def _load_prompts(config: schema.Config, flags: argparse.Namespace, kind: type[PromptSet]) -> tuple[PromptSet, ...]:
    """The prompt sets, each a `kind`, overridden by flags and repeated for each attribute."""
    path = Path(config.prompts_file)
    beside = flags.config_file.parent / path
    if flags.prompts_file is None and not path.exists() and beside.exists():
        path = beside
    raw = _read_yaml(path, "prompts_file")
    if not isinstance(raw, list) or not raw:
        raise InputError(f"{path}: is not a YAML list of prompt sets: start from {flags.examples.format('prompts')}.")
    sizes = {flag: getattr(flags, flag) for flag in ("resolution", "batch_size") if getattr(flags, flag) is not None}
    places = {flag: f"--{flag}" for flag in sizes}
    sets = []
    for number, item in enumerate(raw, start=1):
        source = f"{path}, prompt set {number}"
        given = {**item, **sizes} if isinstance(item, dict) else item
        place = "--" if "resolution" in sizes else f"{source}: "
        sets.append(validated(kind, given, source, places).at(place))
    for attribute in flags.attributes:
        if token := special_token(attribute):
            raise InputError(
                f"--attributes: {attribute!r} contains {token}, which text encoders do not read as text: remove it."
            )
    if flags.attributes:
        sets = [s.with_attribute(a) for s in sets for a in flags.attributes]
    return tuple(sets)


def _read_yaml(path: Path, flag: str) -> Any:
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise InputError(
                f"{flag}: {path} is larger than {MAX_YAML_BYTES:,} bytes, too large for settings: check the path."
            )
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{flag}: {path} cannot be read ({error.strerror}): check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{flag}: {path} is not UTF-8 text: save it as UTF-8.") from error
    except ValueError as error:  # such as a zero byte in the path
        raise InputError(f"{flag}: {str(path)!r} cannot be a path: correct it.") from error
    try:
        return yaml.load(text, _UniqueKeyLoader)  # a SafeLoader: it builds plain values only
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        quoted = "escape" in problem
        remedy = r"remove the double quotes, or write each \ in them as \\" if quoted else "correct that line"
        raise InputError(f"{path}{where}: is not valid YAML ({problem}): {remedy}.") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """Rejects duplicate keys, of which PyYAML would silently use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key_node.value} appears twice", problem_mark=key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Limits merge keys (`<<`): nested ones can expand a few lines to billions of pairs."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_PAIRS:
            raise yaml.MarkedYAMLError(
                problem=f"more than {MAX_PAIRS} keys are merged into one mapping", problem_mark=node.start_mark
            )


def validated(model: type[BaseModel], raw: Any, source: str, places: dict[str, str] | None = None) -> Any:
    """Returns `raw` as a `model`. Raises InputError with one line per mistake, each with its flag or its key.

    source: the file that `raw` comes from. places: {key: flag} of the values that flags have overridden.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        sentences = [_sentence(model, e, source, places or {}) for e in error.errors()]
        raise InputError("\n".join(dict.fromkeys(sentences))) from error


def _sentence(model: type[BaseModel], error: dict, source: str, places: dict[str, str]) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    where = places.get(key, f"{source}: {key}" if key else source)
    if error["type"] == "extra_forbidden":
        return f"{where} is not a known key: {_remedy_for_unknown(model, location)}."
    if error["type"] == "missing":
        return f"{where} is missing: add it."
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}."
    value, reason = error["input"], error["msg"]
    given = f"a {type(value).__name__}" if isinstance(value, dict | list) else repr(value)
    return f"{where}: {given} is not valid: {reason[0].lower()}{reason[1:]}."


def _remedy_for_unknown(model: type[BaseModel], location: list[str]) -> str:
    """Suggests the same key in another section, or else the most similar key of this section."""
    sections = {n: f.annotation for n, f in model.model_fields.items() if _is_section(f.annotation)}
    here = sections[location[0]] if len(location) > 1 else model
    *_, key = location
    elsewhere = [
        f"{name}.{key}" for name, section in sections.items() if key in section.model_fields and section is not here
    ]
    if elsewhere:
        return f"did you mean {elsewhere[0]}"
    near = difflib.get_close_matches(key, here.model_fields, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}" if near else f"the known keys are {', '.join(here.model_fields)}"


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
