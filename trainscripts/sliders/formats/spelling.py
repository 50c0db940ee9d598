"""How slider files name the tensors of a layer. `Family.spelling` says which of the SPELLINGS the family's programs read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sliders.adaptors import ALGORITHMS
from sliders.adaptors.base import ALPHA
from sliders.adaptors.lora import LoRA
from sliders.models import Family

Module = dict[str, Tensor]  # {part of a file key, as `Adaptor.tensors` names it: tensor} of one layer
PARTS = {part for algorithm in ALGORITHMS.values() for part in (*algorithm.PARTS, ALPHA)}


@dataclass(frozen=True)
class Spelling:
    """names: {part: its name in files} of those that are named otherwise there.

    folds_gain: whether a LoRA has no alpha in files, so that programs apply it as it is, and its gain is in the weights.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    folds_gain: bool = False

    def written(self, parts: Module) -> Module:
        """A layer's parts as files have them."""
        if self.folds_gain and LoRA.is_complete(parts):
            gain = float(parts[ALPHA]) / _rank(parts)
            if math.frexp(gain)[0] != 0.5:  # no power of two: the products would be rounded to the file's precision
                parts = {**parts, "lora_up.weight": parts["lora_up.weight"].float()}
            parts = {part: t for part, t in LoRA.scaled(parts, gain).items() if part != ALPHA}
        return {self.names.get(part, part): tensor for part, tensor in parts.items()}

    def read(self, parts: Module) -> Module:
        """The inverse of `written`, up to the gain, which stays in the weights: alpha is then the rank."""
        ours = {name: part for part, name in self.names.items()}
        parts = {ours.get(name, name): tensor for name, tensor in parts.items()}
        if self.folds_gain and LoRA.is_complete(parts) and parts["lora_down.weight"].ndim:
            parts.setdefault(ALPHA, torch.tensor(float(_rank(parts))))
        return parts

    def split(self, key: str) -> tuple[str, str]:
        """MODULE.PART, of which both may contain dots → both. A part that is not known begins at the first dot."""
        for part in PARTS:
            end = f".{self.names.get(part, part)}"
            if key.endswith(end):
                return key.removesuffix(end), end[1:]
        module, _, part = key.partition(".")
        return module, part


SPELLINGS = {
    "kohya": Spelling(),  # also LyCORIS', whose names the algorithms have
    "peft": Spelling({"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}, folds_gain=True),
}


def _rank(parts: Module) -> int:
    return len(parts["lora_down.weight"])


def spelling_of(family: Family) -> Spelling:
    return SPELLINGS[family.spelling]


def by_module(found: Mapping[str, Tensor], family: Family) -> dict[str, Module]:
    """{key in a slider file: tensor} → {prefix of a layer's keys: its parts}."""
    spelling, modules = spelling_of(family), {}
    for key, tensor in found.items():
        module, part = spelling.split(key)
        modules.setdefault(module, {})[part] = tensor
    return {module: spelling.read(parts) for module, parts in modules.items()}


def by_key(modules: Mapping[str, Module], family: Family) -> dict[str, Tensor]:
    """{prefix of a layer's keys: its parts} → {key in a slider file: tensor}."""
    written = {module: spelling_of(family).written(parts) for module, parts in modules.items()}
    return {f"{module}.{part}": tensor for module, parts in written.items() for part, tensor in parts.items()}
