"""Files of other programs: which layer each key belongs to, which part of it, and which alpha it was trained with."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sliders.adaptors import ALGORITHMS
from sliders.adaptors.base import ALPHA
from sliders.formats.foreign_parts import VARIANT_PARTS, plain_parts, what_is
from sliders.formats.joined_layers import joined_layers
from sliders.formats.spelling import Module
from sliders.models import Family
from sliders.models.layers import all_layers, reachable_layers
from sliders.system.errors import InputError, either

# of the attention processors in diffusers up to 0.21: attn1.processor.to_q_lora.down.weight
PROCESSOR = "_lora.{}.weight"
PARTS = {  # end of a key → our name of the part
    **{f".{part}": part for algorithm in ALGORITHMS.values() for part in (*algorithm.PARTS, ALPHA)},
    **{f".{part}": part for part in VARIANT_PARTS},
    **{f".{end}.weight": "lora_down.weight" for end in ("lora_A", "lora_A.default", "lora.down")},
    **{f".{end}.weight": "lora_up.weight" for end in ("lora_B", "lora_B.default", "lora.up")},
    **{PROCESSOR.format(end): f"lora_{end}.weight" for end in ("down", "up")},
}
PREFIXES = (
    "lora_unet_", "lora_transformer_", "lycoris_", "unet_", "diffusion_model_", "model_diffusion_model_", "base_model_model_",
)  # fmt: skip
TEXT_ENCODER = re.compile(
    r"(base_model\.model\.)?((lora|lycoris)_te\d?_|te\d?[._]|text_encoders?(_\d)?[._]|cond_stage_model[._]|conditioner[._]|clip_[lgh][._])"
    r"|.*[._]text_model[._]"
)
LOW = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")  # parts whose rows are the rank
CONVERT = "only such sliders can be converted, with their kind of model as --family"
PEFT_METADATA = "lora_adapter_metadata"  # diffusers' key of PEFT's configuration
DENOISERS = ("unet.", "transformer.")  # begin the keys in it for these parts of a pipeline
PEFT_STEM, PEFT_CONFIG = "adapter_model", "adapter_config.json"  # PEFT's own files


@dataclass(frozen=True)
class Layers:
    """What a file contains for the layers of a denoiser."""

    # {path in diffusers' denoiser, of a layer that may be joined otherwise there: parts}, alpha included where the file states it
    modules: dict[str, Module]
    text_encoders: int  # number of keys for text encoders
    of_processors: bool  # whether they are of diffusers' attention processors, which apply no alpha: the gain is 1


def find_layers(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], denoiser: nn.Module, family: Family,
    remedy: str = CONVERT, everywhere: bool = False,
) -> Layers:  # fmt: skip
    """Raises InputError, naming `path`, if a key is unknown, or if two are for the same part of a layer.

    remedy: for a file with other keys. everywhere: also finds layers outside the denoiser's blocks.
    """
    names = _module_names(denoiser, family, everywhere)
    modules: dict[str, Module] = {}
    seen: dict[tuple[str, str], str] = {}
    unknown, text = [], 0
    for key, tensor in tensors.items():
        end = next((end for end in PARTS if key.endswith(end)), None)
        name = names.get(_bare(key.removesuffix(end))) if end else None
        if name is not None:
            other = seen.setdefault((name, PARTS[end]), key)
            if other != key:
                raise InputError(f"{path}: {other} and {key} are for the same layer: keep one of them.")
            modules.setdefault(name, {})[PARTS[end]] = tensor
        elif TEXT_ENCODER.match(key):
            text += 1
        else:
            unknown.append(key)
    if unknown or not modules:
        raise InputError(f"{path}: {_strange(unknown, len(tensors), text, remedy)}")
    _add_alphas(path, modules, metadata)
    modules = {name: _plain(path, name, parts) for name, parts in modules.items()}
    return Layers(modules, text, any(PROCESSOR.format("up") in key for key in seen.values()))


def _plain(path: Path, name: str, parts: Module) -> Module:
    try:
        return plain_parts(parts)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:  # of products of odd shapes
        raise InputError(
            f"{path}: the parts of {name} do not fit each other in size: get an undamaged file."
        ) from error


def _strange(unknown: list[str], keys: int, text: int, remedy: str) -> str:
    named = next(((key, what) for key in sorted(unknown) if (what := what_is(key))), None)
    if named is not None:
        return (
            f"is {named[1]} (it has {named[0]}), so it cannot be read: merge it into a model with the program that made it, and use "
            "that model."
        )
    what = f"{len(unknown)} of {keys} keys, such as {min(unknown)}, are" if unknown else "its content is"
    if not unknown and text:
        what = f"all its {text} keys are for text encoders,"
    return f"{what} not part of a {either(ALGORITHMS)} of the layers in the model's blocks: {remedy}."


def _module_names(denoiser: nn.Module, family: Family, everywhere: bool) -> dict[str, str]:
    """{name of a layer, in any spelling and form, with underscores for dots: its path in diffusers' denoiser}."""
    found, layers = {}, reachable_layers(denoiser)
    for path in all_layers(denoiser).keys() - layers.keys() if everywhere else ():
        found |= {spelling.replace(".", "_"): path for spelling in family.outer_spellings(path)}
    for path in layers:
        of_processor = path.removesuffix(".0") if path.endswith(".to_out.0") else path
        found |= {spelling.replace(".", "_"): path for spelling in (*family.spellings(path), of_processor)}
    for whole, parts in joined_layers(layers, family).items():
        ours, others = (whole, parts) if whole in layers else (parts[0], (whole,))
        for path in others:
            found |= {name.replace(".", "_"): path for name in _renamed(family.spellings(ours), ours, path)}
    return found


def _renamed(spellings: Iterable[str], path: str, other: str) -> Iterator[str]:
    """The spellings of a layer → those of the `other` beside it, where they end in the layer's own name."""
    name, others = (p.rpartition(".")[2] for p in (path, other))
    yield from (s.removesuffix(name) + others for s in spellings if s.endswith(f".{name}"))


def _bare(key: str) -> str:
    """Removes what compilers and libraries add to a layer's name."""
    name = key.replace(".", "_").replace("_orig_mod_", "_").replace("_processor_", "_")
    name = re.sub("_+", "_", name).removeprefix("_")
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def _add_alphas(path: Path, modules: dict[str, Module], metadata: dict[str, str]) -> None:
    """Adds the alphas that PEFT's configuration states to the layers that have none."""
    config = _peft_config(path, metadata)
    for name, parts in modules.items():
        low = next((parts[part] for part in LOW if part in parts), None)
        alpha = _peft_alpha(config, name)
        if ALPHA in parts or alpha is None:
            continue
        if low is not None and low.ndim:
            root = config.get("use_rslora", False)  # then the gain is alpha / √rank
            parts[ALPHA] = torch.tensor(alpha * math.sqrt(len(low)) if root else alpha, dtype=torch.float64)
        elif "lokr_w1" in parts and (rank := _by_pattern(config, name, "r", "rank_pattern")):
            parts["lokr_w1"] = parts["lokr_w1"].float() * (alpha / rank)  # PEFT has a gain where the others have none
            parts[ALPHA] = torch.tensor(rank, dtype=torch.float64)


def _peft_config(path: Path, metadata: dict[str, str]) -> dict:
    """As diffusers writes it into the file, or PEFT beside its `adapter_model`. Empty if there is none."""
    text = metadata.get(PEFT_METADATA)
    with suppress(OSError, ValueError):
        if text is None and path.stem == PEFT_STEM:
            text = path.with_name(PEFT_CONFIG).read_text(encoding="utf-8")
        config = json.loads(text or "{}")
        if isinstance(config, dict):
            own = {key.partition(".")[2]: value for key, value in config.items() if key.startswith(DENOISERS)}
            return own or config
    return {}


def _peft_alpha(config: dict, name: str) -> float | None:
    return _by_pattern(config, name, "lora_alpha" if "lora_alpha" in config else "alpha", "alpha_pattern")


def _by_pattern(config: dict, name: str, key: str, pattern_key: str) -> float | None:
    """The value of `key` for the layer `name`. A pattern is the end of a layer's name, as a regular expression."""
    found, patterns = config.get(key), config.get(pattern_key)
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        with suppress(re.error):
            if re.match(rf"(.*\.)?({pattern})$", name):
                found = value
                break
    return float(found) if isinstance(found, int | float) else None
