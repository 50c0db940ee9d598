"""LoRA files of any program, this one's sliders included, as adaptors of a family's denoiser."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sliders.adaptors import ALGORITHMS, algo_of
from sliders.adaptors.base import ALPHA, Adaptor, shape_of
from sliders.adaptors.network import AdaptorNetwork
from sliders.formats.foreign_keys import find_layers
from sliders.formats.foreign_layers import ReadLayers, usual_layers
from sliders.formats.metadata import stated_version
from sliders.formats.slider_file import check_slider, check_values, content_hash, stored_settings
from sliders.formats.spelling import Module, by_module
from sliders.models import Family
from sliders.models.layers import reachable_layers
from sliders.system.errors import InputError
from sliders.system.weight_files import WeightFile, open_weights


@dataclass(frozen=True)
class LoRAFile:
    """A file, read and checked. notes: what a user should know who applies it."""

    path: Path
    modules: dict[str, Module]  # {path of a layer in the denoiser: its parts, of one of ALGORITHMS}
    metadata: dict[str, str]
    notes: tuple[str, ...]

    def adaptors(self, denoiser: nn.Module) -> Iterator[tuple[str, Adaptor]]:
        """(path of a layer, an adaptor of it) of all that the file adapts; none is attached."""
        for name, parts in self.modules.items():
            yield name, ALGORITHMS[algo_of(parts)].holding(denoiser.get_submodule(name), parts)

    def attach(self, denoiser: nn.Module) -> AdaptorNetwork:
        """Attaches it to `denoiser`, at multiplier 1."""
        return AdaptorNetwork.holding(denoiser, dict(self.adaptors(denoiser)))

    @property
    def algos(self) -> set[str]:
        return {algo_of(parts) for parts in self.modules.values()}

    @property
    def changes_nothing(self) -> bool:
        """Whether it adds nothing to any layer, like a slider that was never trained."""
        return all(ALGORITHMS[algo_of(parts)].is_zero(parts) for parts in self.modules.values())

    @property
    def model_hash(self) -> str:
        """SHA-256 of its tensors as they are stored, by which web UIs know it."""
        return content_hash(self.path)


def read_lora(path: Path, denoiser: nn.Module, family: Family) -> LoRAFile:
    """Reads a file that fits the model. denoiser: on the meta device, without weights.

    Raises InputError, naming `path`, for a file that is none, is for another family or a model of other sizes, contains what
    no adaptor here computes, or values that are not finite.
    """
    file = open_weights(path, f"{path}:")
    if _is_ours(file, family):
        paths = {family.file_key(name): name for name in reachable_layers(denoiser)}
        slider = check_slider(path, denoiser, family)
        return LoRAFile(path, {paths[key]: parts for key, parts in slider.modules.items()}, slider.metadata, ())
    _check_version(path, file.metadata, family)
    tensors = file.read_all()
    check_values(path, tensors.items())
    remedy = f"choose a LoRA for {family.facts.title} that adapts only those"
    found = find_layers(path, tensors, file.metadata, denoiser, family, remedy, everywhere=True)
    read = usual_layers(path, found, denoiser, family, guess=True)
    for name, parts in read.modules.items():
        if not _fits(denoiser.get_submodule(name), parts):
            raise InputError(
                f"{path}: {name} has another size than the model's layer: choose a LoRA for {family.facts.title}, or give the model "
                "that it was made for."
            )
    return LoRAFile(path, read.modules, file.metadata, tuple(_notes(path, read)))


def _check_version(path: Path, metadata: dict[str, str], family: Family) -> None:
    """Raises InputError if the metadata state other models, whose layers may have the same names and sizes."""
    stated = stated_version(metadata)
    if stated not in (None, family):
        raise InputError(
            f"{path}: its metadata say that it is for {stated.facts.title}, not {family.facts.title}: choose a LoRA for "
            f"{family.facts.title}."
        )


def _is_ours(file: WeightFile, family: Family) -> bool:
    """Whether this program wrote it, with the names of its own sliders."""
    if stored_settings(file.metadata) is None:
        return False
    return by_module(dict.fromkeys(file.stored, torch.empty(0)), family).keys() <= family.file_keys()


def _fits(layer: nn.Module, parts: Module) -> bool:
    """Whether ΔW has the size of the layer's weight. layer: on the meta device."""
    empty = {part: tensor if part == ALPHA else tensor.to("meta") for part, tensor in parts.items()}
    try:
        return ALGORITHMS[algo_of(parts)].holding(layer, empty).difference().shape == shape_of(layer)
    except (RuntimeError, IndexError, ValueError, ZeroDivisionError):  # of products and views that are impossible
        return False


def _notes(path: Path, read: ReadLayers) -> Iterator[str]:
    if read.found.text_encoders:
        yield (
            f"{path}: {read.found.text_encoders} keys are for text encoders and are left out, because prompts are encoded once, for "
            "all multipliers: it does less than in a web UI."
        )
    if read.without_alpha:
        yield f"{path}: {read.without_alpha} layers lack their alpha, so it is the rank, as other programs take it."
