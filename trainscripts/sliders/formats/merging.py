"""Several LoRA files at multipliers as one file of the same effect, exactly or at a lower rank."""

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn

from sliders.adaptors import ALGORITHMS, algo_of
from sliders.adaptors.base import ALPHA
from sliders.adaptors.lora import LoRA
from sliders.formats.foreign_layers import LORA
from sliders.formats.joined_layers import DOWN, UP
from sliders.formats.layer_settings import settings_for
from sliders.formats.lora_files import LoRAFile, read_lora
from sliders.formats.metadata import file_metadata
from sliders.formats.slider_file import check_fit, save_slider, shapes_of
from sliders.formats.spelling import Module, by_key
from sliders.models import Family
from sliders.models.layers import reachable_layers
from sliders.system.errors import InputError

MERGED = "sliders.merged_from"  # in the metadata: [{name, multiplier, hash}]
# kept where all files agree, because they say which models the result is for
SHARED = ("ss_sd_model_name", "ss_resolution", "modelspec.resolution", "modelspec.prediction_type")


@dataclass(frozen=True)
class Merger:
    """What was written. error: ‖sum − written‖ / ‖sum‖ of all weights together, by Frobenius norms; worst: that of `layer`."""

    layers: int
    ranks: tuple[int, ...]  # that occur, ascending
    error: float
    worst: float
    layer: str
    notes: tuple[str, ...]


def merge(
    sources: Sequence[tuple[Path, float]], target: Path, model: str, family: Family, rank: int | None = None
) -> Merger:
    """Writes the sum of (file, multiplier) to `target`.

    model: the one that they are for, of which no weights are loaded. rank: of each layer's best approximation, by a singular
    value decomposition; None: the LoRAs' ranks are concatenated, which is exact. Raises InputError for files that cannot be
    merged so.
    """
    denoiser = family.weightless_denoiser(model)
    files = [(read_lora(path, denoiser, family), multiplier) for path, multiplier in sources]
    _check_algorithms(files, rank)
    _check_layers(files, denoiser)
    names = [name for name, _ in denoiser.named_modules() if any(name in file.modules for file, _ in files)]
    modules, lost, whole, worst = {}, 0.0, 0.0, (0.0, names[0])
    for name in names:
        layer = denoiser.get_submodule(name)
        terms = [(file.modules[name], multiplier) for file, multiplier in files if name in file.modules]
        if rank is None:
            modules[name] = concatenated(terms)
            continue
        total = _sum(layer, terms)
        modules[name] = reduced(layer, total, terms, rank)
        missing = (total - _dense(layer, modules[name])).norm().item()
        lost, whole = lost + missing**2, whole + total.norm().item() ** 2
        worst = max(worst, (missing / total.norm().clamp(min=1e-30).item(), name))
    modules = _with_one_alpha(modules)
    _save(target, modules, files, denoiser, family)
    ranks = tuple(sorted({len(parts[DOWN]) for parts in modules.values()}))
    error = math.sqrt(lost / whole) if whole else 0.0
    return Merger(len(modules), ranks, error, *worst, tuple(note for file, _ in files for note in file.notes))


def _check_algorithms(files: Sequence[tuple[LoRAFile, float]], rank: int | None) -> None:
    for file, _ in files:
        others = sorted(file.algos - {LORA})
        if "glora" in others:
            raise InputError(
                f"{file.path}: is a glora, whose effect depends on the model's weights, so it cannot be merged: leave it out, and use "
                "it beside the others."
            )
        if others and rank is None:
            raise InputError(
                f"{file.path}: is a {others[0]}, whose weights cannot be concatenated with others': add --rank N, the rank of the LoRA "
                "that comes nearest to the sum."
            )


def _check_layers(files: Sequence[tuple[LoRAFile, float]], denoiser: nn.Module) -> None:
    for file, _ in files:
        if outside := sorted(file.modules.keys() - reachable_layers(denoiser).keys()):
            raise InputError(
                f"{file.path}: adapts {outside[0]}, outside the blocks whose layers all web UIs know, so it cannot be merged: leave it "
                "out, and use it beside the others."
            )


def concatenated(terms: Sequence[tuple[Module, float]]) -> Module:
    """LoRAs of one layer at multipliers → the LoRA that computes their sum, of all their ranks together and gain 1.

    The factors go into the ups, which are float32 where the widest precision of the weights would round the products.
    """
    dtype = _widest(terms)
    ups = [parts[UP].float() * (multiplier * float(parts[ALPHA]) / len(parts[DOWN])) for parts, multiplier in terms]
    up, down = torch.cat(ups, 1), torch.cat([parts[DOWN].to(dtype) for parts, _ in terms])
    narrow = up.to(dtype)
    return {
        DOWN: down,
        UP: narrow if torch.equal(narrow.float(), up) else up,
        ALPHA: torch.tensor(float(len(down))),
    }


def reduced(layer: nn.Module, total: Tensor, terms: Sequence[tuple[Module, float]], rank: int) -> Module:
    """The LoRA nearest to ΔW `total` in the Frobenius norm, of that rank or of the highest that one of `layer` can have.

    terms: what `total` is the sum of. The weights have the widest precision of theirs.
    """
    with torch.device("meta"):
        rank = LoRA(layer, rank, 1.0).rank
    u, sizes, v = _svd(total, terms)
    rank = min(rank, len(sizes))
    roots, dtype = sizes[:rank].sqrt(), _widest(terms)
    up, down = u[:, :rank] * roots, roots[:, None] * v[:rank]
    return {
        DOWN: down.view(rank, *total.shape[1:]).to(dtype).contiguous(),
        UP: up.view(len(up), rank, *(1,) * (total.ndim - 2)).to(dtype).contiguous(),
        ALPHA: torch.tensor(float(rank)),
    }


def _with_one_alpha(modules: Mapping[str, Module]) -> dict[str, Module]:
    """LoRAs of gain 1 → the same with an alpha that all share, because diffusers loses those of attention layers that differ."""
    alpha = Counter(len(parts[DOWN]) for parts in modules.values()).most_common(1)[0][0]
    found = {}
    for name, parts in modules.items():
        up, factor = parts[UP], len(parts[DOWN]) / alpha
        found[name] = {**parts, UP: up if factor == 1 else up.float() * factor, ALPHA: torch.tensor(float(alpha))}
    return found


def _svd(total: Tensor, terms: Sequence[tuple[Module, float]]) -> tuple[Tensor, Tensor, Tensor]:
    """Singular value decomposition of `total` as a matrix, in the time that its rank takes where its factors are known."""
    if not all(LoRA.is_complete(parts) for parts, _ in terms):
        return torch.linalg.svd(total.flatten(1), full_matrices=False)
    together = concatenated(terms)
    left, up = torch.linalg.qr(together[UP].float().flatten(1))
    right, down = torch.linalg.qr(together[DOWN].float().flatten(1).T)
    u, sizes, v = torch.linalg.svd(up @ down.T, full_matrices=False)
    return left @ u, sizes, v @ right.T


def _widest(terms: Sequence[tuple[Module, float]]) -> torch.dtype:
    """The narrowest dtype that holds the values of all parts but alpha."""
    found = [tensor.dtype for parts, _ in terms for part, tensor in parts.items() if part != ALPHA]
    return reduce(torch.promote_types, found)


def _sum(layer: nn.Module, terms: Sequence[tuple[Module, float]]) -> Tensor:
    return sum(multiplier * _dense(layer, parts) for parts, multiplier in terms)


def _dense(layer: nn.Module, parts: Module) -> Tensor:
    """ΔW of parts at multiplier 1, float32."""
    return ALGORITHMS[algo_of(parts)].holding(layer, parts).difference().detach()


def _save(
    target: Path, modules: Mapping[str, Module], files: Sequence[tuple[LoRAFile, float]], denoiser: nn.Module,
    family: Family,
) -> None:  # fmt: skip
    network = settings_for(target, denoiser, dict(modules), LORA)
    by_file_key = {family.file_key(name): parts for name, parts in modules.items()}
    first = files[0][0].metadata
    agreed = {k: first[k] for k in SHARED if k in first and all(f.metadata.get(k) == first[k] for f, _ in files)}
    merged = [{"name": f.path.stem, "multiplier": multiplier, "hash": f.model_hash} for f, multiplier in files]
    metadata = {
        **family.metadata(None),
        **agreed,
        **file_metadata(target.stem, network, time.time()),
        MERGED: json.dumps(merged),
    }
    with suppress(InputError):  # ranks that no settings give: then it is read as a file of another program
        check_fit(target, shapes_of(by_file_key), denoiser, network, family)
        metadata["sliders.config"] = json.dumps({"network": network.model_dump()})
    save_slider(target, by_key(by_file_key, family), metadata, family)
