"""The parts of diffusers folders with a UNet: which classes they have, and their config.json."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from sliders.models.folders import part_config, read_json
from sliders.models.places import PARTS
from sliders.system.errors import InputError

CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}


def check_components(folder: Path, place: str, parts: Iterable[str]) -> None:
    """Raises InputError unless model_index.json names classes that this project can use, and tokenizers are there."""
    index = read_json(folder / "model_index.json", place)
    for part in parts:
        for name in (part, part.replace("text_encoder", "tokenizer")):
            if name not in CLASSES:
                continue
            entry = index.get(name)
            found = entry[-1] if isinstance(entry, list) and entry else entry
            if found is None:
                raise InputError(
                    f"{place} has no {PARTS.get(name, name)} in its model_index.json: use a complete folder of a base model."
                )
            if found not in CLASSES[name]:
                raise InputError(
                    f"{place}: model_index.json: {name} is {found}, but only {CLASSES[name][0]} is supported: choose another model."
                )
            if name.startswith("tokenizer"):
                _check_tokenizer(folder, name, place)


def _check_tokenizer(folder: Path, name: str, place: str) -> None:
    missing = [file for file in ("vocab.json", "merges.txt") if not (folder / name / file).exists()]
    if missing and not (folder / name / "tokenizer.json").exists():
        raise InputError(f"{place} lacks {name}/{missing[0]}: use a complete diffusers folder.")


def unet_config(folder: Path) -> dict | None:
    """The UNet's config in a diffusers folder, None if it cannot be read."""
    with suppress(InputError):
        return part_config(folder, "unet", str(folder))
    return None
