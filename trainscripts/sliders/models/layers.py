"""Chooses the layers of a denoiser that are adapted, by `network.type`, `training_method`, `include`, `exclude`."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from sliders.config.schema import Network
from sliders.models.architecture import Architecture
from sliders.models.diffusers_unet.architecture import UNET
from sliders.models.flux2.architecture import FLUX2
from sliders.models.zimage.architecture import ZIMAGE
from sliders.system.errors import InputError, either

Layer = nn.Linear | nn.Conv2d

ARCHITECTURES = {  # {class of the denoiser: its modules}
    "UNet2DConditionModel": UNET,
    "Flux2Transformer2DModel": FLUX2,
    "StackedTransformer": ZIMAGE,
}


def architecture_of(denoiser: nn.Module) -> Architecture:
    return ARCHITECTURES[type(denoiser).__name__]


def select_layers(denoiser: nn.Module, network_type: str, training_method: str) -> dict[str, Layer]:
    """Returns {module path: layer} of the layers to adapt, in the denoiser's order. May be empty.

    Raises InputError for a training_method that the denoiser's modules do not offer.
    """
    architecture = architecture_of(denoiser)
    if reason := architecture.refused.get(training_method):
        raise InputError(
            f"network.training_method: {training_method} chooses no layers of this kind of model, because {reason}: use "
            f"{either(architecture.methods)}."
        )
    keep, adapted = architecture.methods[training_method], architecture.adapted[network_type]
    chosen = {}
    for block, module in denoiser.named_modules():
        if type(module).__name__ not in adapted:
            continue
        for layer, child in module.named_modules():
            if isinstance(child, Layer) and keep(block, layer):
                chosen[f"{block}.{layer}"] = child
    return chosen


@dataclass(frozen=True)
class ChosenLayer:
    """A layer to adapt, with the rank and alpha of its adaptor."""

    layer: Layer
    rank: int
    alpha: float


def reachable_layers(denoiser: nn.Module) -> dict[str, Layer]:
    """{module path: layer} of all that patterns may name: those inside the blocks, whose names web UIs know."""
    inside = architecture_of(denoiser).inside
    return {path: layer for path, layer in all_layers(denoiser).items() if path.startswith(inside)}


def all_layers(denoiser: nn.Module) -> dict[str, Layer]:
    """{module path: layer} of all linear layers and convolutions."""
    return {path: m for path, m in denoiser.named_modules() if isinstance(m, Layer)}


def choose_layers(denoiser: nn.Module, network: Network) -> dict[str, ChosenLayer]:
    """{module path: layer, rank and alpha} by type and training_method, plus `include`, minus `exclude`. May be empty.

    Of several patterns of `include`, the last one with a rank decides. Raises InputError for a pattern without effect.
    """
    reachable = reachable_layers(denoiser)
    usual = select_layers(denoiser, network.type, network.training_method)
    chosen = {path: ChosenLayer(layer, network.rank, network.alpha) for path, layer in usual.items()}
    for item in network.include:
        for path in _matching(item.pattern, reachable, f"network.include: {item.pattern!r}"):
            known = chosen.get(path, ChosenLayer(reachable[path], network.rank, network.alpha))
            rank, alpha = network.rank_and_alpha(item)
            chosen[path] = replace(known, rank=rank, alpha=alpha) if item.rank or item.alpha else known
    for pattern in network.exclude:
        for path in _matching(pattern, chosen, f"network.exclude: {pattern!r}"):
            del chosen[path]
    return {path: chosen[path] for path in (reachable if network.include else usual) if path in chosen}


def describe_choice(denoiser: nn.Module, network: Network) -> str:
    """`c3lier noxattn, with 140 of *ff.net* (rank 8 alpha 4), without 6 of mid_block.resnets.*`"""
    text = f"{network.type} {network.training_method}"
    before = choose_layers(denoiser, network.model_copy(update={"exclude": ()}))
    for item in network.include:
        rank, alpha = network.rank_and_alpha(item)
        own = f" (rank {rank} alpha {alpha:g})" if item.rank or item.alpha else ""
        text += f", with {sum(fnmatchcase(path, item.pattern) for path in before)} of {item.pattern}{own}"
    for pattern in network.exclude:
        text += f", without {sum(fnmatchcase(path, pattern) for path in before)} of {pattern}"
    return text


def _matching(pattern: str, paths: Iterable[str], place: str) -> list[str]:
    """Raises InputError, with patterns that match, if this one matches nothing."""
    paths = list(paths)
    found = [path for path in paths if fnmatchcase(path, pattern)]
    if not found:
        core = pattern.strip("*.")
        near = [core] if any(core in path for path in paths) else _similar(core, paths)
        remedy = "with logging.verbose: true, --dry_run lists them"
        if near:
            remedy = f"did you mean {either(f'*{name}*' for name in near)}"
        raise InputError(f"{place} matches none of {len(paths)} layers: {remedy}.")
    return found


def _similar(text: str, paths: list[str]) -> list[str]:
    """Parts of paths, such as `ff.net` or `attn1.to_q`, that are most like `text`."""
    parts = [path.split(".") for path in paths]
    length = text.count(".") + 1
    windows = {".".join(p[i : i + n]) for p in parts for n in (length, length + 1) for i in range(len(p) - n + 1)}
    return difflib.get_close_matches(text, sorted(windows), n=3, cutoff=0.5)
