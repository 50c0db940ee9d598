"""LoRAs of several layers that read the same input, as one LoRA of the layers together, and back.

Some programs adapt a model in which query, key and value are three layers, others one in which they are one. Both forms of a
LoRA compute the same: no product is approximated.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sliders.adaptors.base import ALPHA
from sliders.formats.spelling import Module
from sliders.models import Family
from sliders.models.layers import reachable_layers
from sliders.system.errors import InputError

DOWN, UP = "lora_down.weight", "lora_up.weight"


def joined_layers(paths: Iterable[str], family: Family) -> dict[str, tuple[str, ...]]:
    """{path of a layer: paths of those that it is in the other form}. paths: of the layers in one of the forms."""
    found = {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        for whole, parts in family.joined.items():
            if name in (whole, parts[0]):
                found[f"{parent}.{whole}"] = tuple(f"{parent}.{part}" for part in parts)
    return found


def in_form_of(path: Path, modules: Mapping[str, Module], denoiser: nn.Module, family: Family) -> dict[str, Module]:
    """LoRAs of layers in any form → those of the denoiser's layers. Raises InputError, naming `path`.

    A layer has its alpha. Layers of the denoiser come back as they are.
    """
    layers, found = reachable_layers(denoiser), dict(modules)
    for whole, parts in joined_layers(layers, family).items():
        given = [found.get(part) for part in parts]
        if whole in found and any(given):
            raise InputError(f"{path}: adapts both {whole} and parts of it: use the file as it is.")
        if whole in layers and any(given):
            layer = layers[whole]
            _check_sizes(path, parts, given, layer.out_features // len(parts), layer.in_features)
            found[whole] = _joined(given, layer.out_features // len(parts))
            for part in parts:
                found.pop(part, None)
        elif whole in found and whole not in layers:
            layer = layers[parts[0]]
            _check_sizes(path, [whole], [found[whole]], layer.out_features * len(parts), layer.in_features)
            found |= dict(zip(parts, parted(found.pop(whole), len(parts)), strict=True))
    return found


def _check_sizes(path: Path, names: Sequence[str], given: Sequence[Module | None], out: int, into: int) -> None:
    for name, parts in zip(names, given, strict=True):
        if parts and (parts[UP].shape[0], parts[DOWN].shape[1:]) != (out, (into,)):
            raise InputError(
                f"{path}: {name} has another size than the model's layer: give the model it was trained on as --model."
            )


def parted(parts: Module, count: int) -> list[Module]:
    """The LoRA of a layer → those of the `count` layers of equal size that it joins. Their downs are equal."""
    return [{**parts, DOWN: parts[DOWN].clone(), UP: rows.contiguous()} for rows in parts[UP].chunk(count)]


def _joined(given: Sequence[Module | None], out: int) -> Module:
    """The inverse of `parted`, also for LoRAs with downs of their own, whose ranks add up. None for layers without one.

    out: of each of the layers.
    """
    present = [parts for parts in given if parts]
    downs: list[Tensor] = []
    for parts in present:
        if not any(torch.equal(parts[DOWN], down) for down in downs):
            downs.append(parts[DOWN])
    gains = {float(parts[ALPHA]) / len(parts[DOWN]) for parts in present}
    common = gains.pop() if len(gains) == 1 else None
    dtype = present[0][UP].dtype if common is not None else torch.float32
    blocks = []
    for parts in given:
        block = torch.zeros(out, sum(map(len, downs)), dtype=dtype)
        if parts:
            number = next(i for i, down in enumerate(downs) if torch.equal(parts[DOWN], down))
            start = sum(map(len, downs[:number]))
            gain = 1.0 if common is not None else float(parts[ALPHA]) / len(parts[DOWN])
            block[:, start : start + len(parts[DOWN])] = parts[UP].float() * gain
        blocks.append(block)
    alpha = block.shape[1] * (1.0 if common is None else common)
    return {DOWN: torch.cat(downs), UP: torch.cat(blocks), ALPHA: torch.tensor(alpha, dtype=torch.float64)}
