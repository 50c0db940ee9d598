"""Diffusers folders: their JSON files, the weight files of each part, and the hub's copies of them in the local cache."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from diffusers import DiffusionPipeline
from huggingface_hub import constants, model_info, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from torch import Tensor

from sliders.models.places import PARTS
from sliders.system.errors import InputError, first_line
from sliders.system.files import cannot_be_read, is_missing
from sliders.system.weight_files import Stored, WeightFile, open_weights

STEMS = r"(diffusion_pytorch_model|pytorch_model|model)"
WEIGHTS = re.compile(  # a file, or an index of several
    rf"{STEMS}(\.(?P<variant>[\w-]+))?\.(?P<format>safetensors|bin)(\.index(\.(?P<indexed>[\w-]+))?\.json)?",
    re.IGNORECASE,
)
PREFERRED = ("", "fp16")  # variants; another one is taken only if it is alone
TEXT_FILES = ["*.json", "*/*.json", "*.txt", "*/*.txt", "*.model", "*/*.model"]
REACHED_WITHIN = 5.0  # seconds


class Weights:
    """The weights of one or several files, by key."""

    def __init__(self, files: Iterable[WeightFile]):
        self.files = tuple(files)
        self._file_of = {key: file for file in self.files for key in file.stored}

    @cached_property
    def stored(self) -> dict[str, Stored]:
        return {key: file.stored[key] for key, file in self._file_of.items()}

    @property
    def mapped(self) -> bool:
        return all(file.mapped for file in self.files)

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Raises what the libraries raise."""
        wanted: dict[WeightFile, list[str]] = {}
        for key in dict.fromkeys(keys):
            wanted.setdefault(self._file_of[key], []).append(key)
        return {key: tensor for file, names in wanted.items() for key, tensor in file.read(names).items()}


def read_json(path: Path, place: str) -> dict:
    """Raises InputError unless `path` holds a JSON object. place: how the sentence about its folder begins."""
    whole = "diffusers folder" if path.name == "model_index.json" else "complete diffusers folder"
    name = f"{path.parent.name}/{path.name}" if path.parent.name in {*PARTS, "scheduler"} else path.name
    reason = ""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        reason = " (it holds no object)"
    except OSError as error:
        if not is_missing(path, error):
            raise InputError(f"{place}: {name} {cannot_be_read(path, error)}.") from error
    except ValueError as error:
        reason = f" ({first_line(error)})"
    raise InputError(f"{place} contains no readable {name}{reason}: use a {whole}.")


def part_config(folder: Path, part: str, place: str) -> dict:
    return read_json(folder / part / "config.json", place)


def is_quantised(folder: Path) -> bool:
    """Whether diffusers or transformers stored a part quantised, so that only they can load it."""
    configs = (folder / part / "config.json" for part in PARTS)
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in configs if path.is_file())
    return any("quantization_config" in text for text in texts)


def part_weights(folder: Path, part: str, place: str) -> Weights:
    """The weight files of a part: .safetensors before pickles, full precision before fp16 or the only other variant."""
    found = _choices(folder / part)
    if not found:
        raise InputError(
            f"{place} contains no weights of its {PARTS[part]} (a .safetensors file in {part}/): use a complete diffusers folder."
        )
    path = found[0]
    inside = f"{place}: {part}/"
    if not path.name.lower().endswith(".json"):
        return Weights([open_weights(path, f"{inside}{path.name}")])
    names = read_json(path, place).get("weight_map")
    if not isinstance(names, Mapping) or not names:
        raise InputError(f"{inside}{path.name} has no weight_map: use a complete diffusers folder.")
    files = sorted({str(name) for name in names.values()})
    return Weights([open_weights(path.parent / name, f"{inside}{name}") for name in files])


def has_weights(folder: Path, parts: Iterable[str]) -> bool:
    return all(_choices(folder / part) for part in parts)


def _choices(folder: Path) -> list[Path]:
    """Weight files, or indexes of several, the best first."""
    matches = [WEIGHTS.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    variants = {match: match["indexed"] or match["variant"] or "" for match in matches if match}
    variants = {
        match: v for match, v in variants.items() if not re.match(r"\d+-of-\d+", v)
    }  # parts that an index names
    usable = PREFERRED if len({*variants.values()}) > 1 else {*variants.values()}

    def rank(match: re.Match) -> tuple:
        name = match.string
        return match["format"].lower() != "safetensors", variants[match] != "", name.endswith(".json"), name

    return [folder / match.string for match in sorted(variants, key=rank) if variants[match] in usable]


def cached_folder(pipeline: type[DiffusionPipeline], name: str, parts: Iterable[str]) -> Path | None:
    """The folder of a hub model in the local cache, None unless it is complete there. Asks no server."""
    for choice in ({}, {"variant": "fp16"}):
        with suppress(OSError, ValueError):
            folder = Path(pipeline.download(name, local_files_only=True, **choice))
            if has_weights(folder, parts):
                return folder
    return None


def hub_folder(
    pipeline: type[DiffusionPipeline], name: str, parts: Iterable[str], place: str, look: Callable[[bool], None]
) -> Path:
    """The folder of a hub model. Prefers cached files to a download, and half-precision files to full ones.

    look: raises InputError for a model of another kind, by its JSON files in the cache (True) or on the hub (False), before
    its weights are downloaded.
    """
    if folder := cached_folder(pipeline, name, parts):
        return folder
    look(True)
    check_reachable(name, place, "check the name, or connect to the network once")
    look(False)
    try:
        with suppress(OSError, ValueError):
            return Path(pipeline.download(name, variant="fp16"))
        return Path(pipeline.download(name))
    except Exception as error:  # of the hub, the network and the disk
        raise InputError(
            f"{place} cannot be downloaded ({first_line(error).rstrip('.')}): check the hub id, the network and the free disk space, and "
            "your access if the model is gated."
        ) from error


def json_folder(name: str, place: str) -> Path:
    """A hub model's JSON and tokenizer files, from the cache or downloaded. Raises InputError if neither is possible."""
    with suppress(OSError, ValueError):
        folder = Path(snapshot_download(name, allow_patterns=TEXT_FILES, local_files_only=True))
        if (folder / "model_index.json").exists() and (folder / "tokenizer").exists():
            return folder
    needs = f"{place} needs the JSON and tokenizer files of {name}"
    remedy = "set pretrained_model.config (--model_config) to a diffusers folder with these files, or connect to the network once"
    check_reachable(name, needs, remedy)
    try:
        return Path(snapshot_download(name, allow_patterns=TEXT_FILES))
    except Exception as error:
        raise InputError(f"{needs}, which cannot be downloaded ({first_line(error)}): {remedy}.") from error


def check_reachable(name: str, place: str, remedy: str) -> None:
    """Raises InputError within seconds if the hub cannot be reached or has no such model: its library tries for 25 s."""
    try:
        model_info(name, timeout=REACHED_WITHIN)
        return
    except GatedRepoError:
        reason = "the model is gated: accept its terms on its page, and log in with `hf auth login`"
    except RepositoryNotFoundError:
        reason = (
            f"{constants.ENDPOINT} has no such model, or it is private, and there is no such folder or file here: check the name, or log "
            "in with `hf auth login`"
        )
    except OfflineModeIsEnabled:
        reason = f"it is not in the local cache, and HF_HUB_OFFLINE is set: {remedy}"
    except HfHubHTTPError as error:
        reason = f"{constants.ENDPOINT} answers: {first_line(error).rstrip('.')}: try again later"
    except Exception as error:  # of the network's libraries
        reason = (
            f"it is not in the local cache, and {constants.ENDPOINT} cannot be reached ({first_line(error)}): {remedy}"
        )
    raise InputError(f"{place}: {reason}.")
