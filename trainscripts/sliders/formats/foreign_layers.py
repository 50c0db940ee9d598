"""Layers of files of other programs, as this project writes them: the denoiser's layers, each with its alpha."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sliders.adaptors import ALGORITHMS, algo_of
from sliders.adaptors.base import ALPHA
from sliders.formats.foreign_keys import Layers
from sliders.formats.joined_layers import in_form_of
from sliders.formats.spelling import Module
from sliders.models import Family
from sliders.models.layers import all_layers
from sliders.system.errors import InputError

LORA = "lora"  # of ALGORITHMS
KEPT = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class ReadLayers:
    """modules: {path of a layer in the denoiser: its parts, alpha included where the algorithm has one}. found: in the file."""

    modules: dict[str, Module]
    found: Layers
    without_alpha: int  # number of layers for which the file states none


def usual_layers(
    path: Path, layers: Layers, denoiser: nn.Module, family: Family, alpha: float | None = None, guess: bool = False
) -> ReadLayers:
    """Raises InputError, naming `path`, if a layer is incomplete or lacks its alpha.

    alpha: used where the file contains none. guess: then takes the rank, as all programs do. Whether sizes are the
    denoiser's remains to be checked.
    """
    known = all_layers(denoiser)
    algos = {name: complete(path, name, parts) for name, parts in layers.modules.items()}
    modules = {name: _prepared(path, name, known.get(name), parts) for name, parts in layers.modules.items()}
    without = _add_alphas(path, modules, algos, alpha, guess or layers.of_processors or family.alpha_is_rank)
    if other := modules.keys() - known.keys():
        if set(algos.values()) != {LORA}:
            raise InputError(
                f"{path}: {min(other)} has another form in {family.facts.title}'s files, in which only {LORA} can be written, and "
                f"this is {next(a for a in algos.values() if a != LORA)}: use the file as it is."
            )
        modules = in_form_of(path, modules, denoiser, family)
    return ReadLayers(modules, layers, without)


def complete(path: Path, name: str, parts: Module) -> str:
    """The algorithm of a layer's parts, as `network.algo` names it. Raises InputError if some are missing."""
    algo = algo_of(parts)
    if algo is None:
        raise InputError(f"{path}: {name} has only a part of its weights: get the complete file.")
    return algo


def _prepared(path: Path, name: str, layer: nn.Module | None, parts: Module) -> Module:
    """Parts as this project writes them: some programs write a linear layer's weights as 1×1 convolutions, or in 8 bits.

    layer: None for one that the denoiser has in another form, which is linear.
    """
    found = {}
    for part, weight in parts.items():
        shape = tuple(weight.shape)
        if part == ALPHA and weight.numel() == 1 and not weight.is_complex():
            found[part] = weight.reshape(()).double()
        elif part != ALPHA and weight.ndim >= 2 and weight.numel() and weight.is_floating_point():
            flat = weight if isinstance(layer, nn.Conv2d) else weight.flatten(1)
            found[part] = (flat if flat.dtype in KEPT else flat.float()).contiguous()
        else:
            raise InputError(
                f"{path}: {part} of {name} has shape {shape} and type {str(weight.dtype).removeprefix('torch.')}, as no slider has: "
                "get an undamaged file."
            )
    return found


def _add_alphas(
    path: Path, modules: Mapping[str, Module], algos: Mapping[str, str], alpha: float | None, known: bool
) -> int:
    """Gives each of `modules` the alpha that it lacks, and removes those of algorithms that have none. Raises InputError.

    known: whether all programs take a missing alpha to be the rank. Returns how many lacked it.
    """
    with_alpha = []
    for name, parts in modules.items():
        algorithm = ALGORITHMS[algos[name]]
        if algorithm.HAS_ALPHA:
            with_alpha.append((parts, algorithm))
        else:
            parts.pop(ALPHA, None)
    without = [(parts, algorithm) for parts, algorithm in with_alpha if ALPHA not in parts]
    if without and alpha is None and not known:
        raise InputError(
            f"{path}: {len(without)} layers lack their alpha, so web UIs would guess it: add --alpha, with the alpha it was trained with."
        )
    for parts, algorithm in without:
        own = alpha or algorithm.settings_of([parts])["rank"]
        parts[ALPHA] = torch.tensor(own, dtype=torch.float64)
    bad = [parts[ALPHA].item() for parts, _ in with_alpha if not 0 < parts[ALPHA].item() < float("inf")]
    if bad:
        raise InputError(f"{path}: has an alpha of {bad[0]:g}, which is not a positive number: get an undamaged file.")
    return len(without)
