"""LoRAs that a slider is trained on top of: checked for the plan, then merged into the frozen weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sliders.config.schema import MergedLoRA
from sliders.formats.lora_files import LoRAFile, read_lora
from sliders.models import Family
from sliders.system.errors import InputError

KEY = "pretrained_model.loras"
TRAINED_WITH = "sliders.loras"  # in the metadata: [{name, weight, hash}]


@dataclass(frozen=True)
class ModelLoRA:
    """A checked file, without its weights."""

    path: Path
    weight: float
    hash: str  # SHA-256 of its tensors
    layers: int
    notes: tuple[str, ...]

    @property
    def tag(self) -> str:
        """What a web UI's prompt needs beside the slider."""
        return lora_tag(self.path.stem, self.weight)

    @property
    def identity(self) -> dict[str, str | float]:
        """For metadata and checkpoints: not where it lies on the user's disk."""
        return {"name": self.path.stem, "weight": self.weight, "hash": self.hash}


def lora_tag(name: str, weight: float) -> str:
    return f"<lora:{name}:{weight:g}>"


def loras_below(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """(name, tag) of the LoRAs that a slider was trained on top of, by its file's metadata."""
    return [(one["name"], lora_tag(one["name"], one["weight"])) for one in json.loads(metadata.get(TRAINED_WITH, "[]"))]


def check_loras(wanted: Sequence[MergedLoRA], denoiser: nn.Module, family: Family) -> tuple[ModelLoRA, ...]:
    """denoiser: on the meta device, without weights. Raises InputError for a file that is missing or does not fit it."""
    found = []
    for one in wanted:
        file = _read(one.file, denoiser, family)
        found.append(ModelLoRA(one.file, one.weight, file.model_hash, len(file.modules), file.notes))
    return tuple(found)


def _read(path: Path, denoiser: nn.Module, family: Family) -> LoRAFile:
    try:
        return read_lora(path, denoiser, family)
    except InputError as error:
        raise InputError(f"{KEY}: {error}") from error


@torch.no_grad()
def merge_loras(
    loras: Sequence[ModelLoRA], denoiser: nn.Module, weightless: nn.Module, family: Family, dtype: torch.dtype
) -> None:
    """Adds weight · ΔW of each to the weights of `denoiser`, in float32, and rounds the sum once, to `dtype`.

    The weights are as they were loaded, not quantised. Raises InputError if a file is no longer the one that was checked.
    """
    totals: dict[str, Tensor] = {}
    for lora in loras:
        file = _read(lora.path, weightless, family)
        if file.model_hash != lora.hash:
            raise InputError(f"{KEY}: {lora.path} has changed since it was checked: start again.")
        for name, adaptor in file.adaptors(denoiser):
            delta = lora.weight * adaptor.difference()
            totals[name] = totals[name] + delta if name in totals else delta
    for name, total in totals.items():
        layer = denoiser.get_submodule(name)
        layer.weight = nn.Parameter((layer.weight.float() + total).to(dtype), requires_grad=False)
