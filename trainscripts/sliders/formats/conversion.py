"""Converts sliders of other programs to slider files of this one, with the keys and metadata that web UIs expect."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sliders.adaptors import ALGORITHMS
from sliders.adaptors.base import ALPHA
from sliders.config.schema import Network
from sliders.formats.cards import CARD
from sliders.formats.foreign_keys import Layers, find_layers
from sliders.formats.foreign_layers import LORA, complete, usual_layers
from sliders.formats.joined_layers import joined_layers, parted
from sliders.formats.layer_settings import settings_for
from sliders.formats.metadata import file_metadata, stated_version
from sliders.formats.slider_file import check_fit, check_values, save_slider, save_tensors, shapes_of, stored_settings
from sliders.formats.spelling import SPELLINGS, Module, by_key
from sliders.models import VERSIONS, Family
from sliders.models.places import TINY
from sliders.system.errors import InputError, either
from sliders.system.weight_files import open_weights


@dataclass(frozen=True)
class Conversion:
    """layers: those of the new file, in words. notes: what the user should know about it."""

    layers: str
    notes: list[str]


@dataclass(frozen=True)
class Fitted:
    """A file's layers as those of a family's model: settings, and {path of a layer: its parts}."""

    network: Network
    modules: dict[str, Module]
    layers: Layers


def convert(
    source: Path, target: Path, model: str, family: Family, alpha: float | None = None, reverse: bool = False,
    keys: str | None = None,
) -> Conversion:  # fmt: skip
    """Converts `source`, a slider of another program or of this one, of a known algorithm, to `target`.

    model: the one that it is for, of which no weights are loaded. alpha: used where the file contains none. reverse:
    negates the slider. keys: program for whose names `target` is written, one of `family.namings`; None: for web UIs and this
    one. Raises InputError if `source` cannot be converted.
    """
    if keys is not None and keys not in family.namings:
        raise InputError(
            f"--keys: {keys} has no names of its own for {family.facts.title}, whose slider files all programs read: leave it out."
        )
    file = open_weights(source, f"{source}:")
    tensors, metadata = file.read_all(), file.metadata
    check_values(source, tensors.items())
    fitted = _fit(source, tensors, metadata, family, model, alpha)
    notes = list(_notes(fitted, alpha))
    similar = list(_similar(source, tensors, metadata, family, model))
    notes += _version_notes(source, metadata, family, similar)
    algorithm, found = ALGORITHMS[fitted.network.algo], fitted.modules
    if reverse:
        found = {module: algorithm.scaled(parts, -1.0) for module, parts in found.items()}
    known = _metadata(source, target, metadata, fitted.network, family, reverse)
    if keys is None:
        save_slider(target, by_key(_by_file_key(found, family), family), known, family)
    else:
        save_tensors(target, _named(keys, found, fitted.network.algo, family), known)
    return Conversion(_described(fitted), notes)


def _fit(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], family: Family, model: str, alpha: float | None
) -> Fitted:
    """Raises InputError, naming `path`, if the file's layers are not those of the family's model, or lack their alpha."""
    denoiser = family.weightless_denoiser(model)
    layers = find_layers(path, tensors, metadata, denoiser, family)
    algo = _algorithm(path, layers.modules)
    modules = usual_layers(path, layers, denoiser, family, alpha).modules
    found = {}
    for name, parts in modules.items():
        written = ALGORITHMS[algo].for_files(parts, denoiser.get_submodule(name))
        found[name] = {part: w.float() if part == ALPHA else w for part, w in written.items()}
    shapes = shapes_of(_by_file_key(found, family))
    network = stored_settings(metadata)
    with suppress(InputError):
        if network is not None and network.algo == algo:
            check_fit(path, shapes, denoiser, network, family)
            return Fitted(network, found, layers)
    network = settings_for(path, denoiser, modules, algo)
    check_fit(path, shapes, denoiser, network, family)
    return Fitted(network, found, layers)


def _algorithm(path: Path, modules: dict[str, Module]) -> str:
    """The algorithm of a file, as `network.algo` names it. Raises InputError if layers are incomplete or differ in it."""
    found = {}
    for name, parts in modules.items():
        found.setdefault(complete(path, name, parts), name)
    if len(found) > 1:
        raise InputError(
            f"{path}: mixes {' and '.join(found)}, as in {' and '.join(found.values())}: use the file as it is."
        )
    return next(iter(found))


def _by_file_key(modules: dict[str, Module], family: Family) -> dict[str, Module]:
    """{path of a layer: its parts} → {prefix of a layer's keys in a slider file: its parts}."""
    return {family.file_key(name): parts for name, parts in modules.items()}


def _named(keys: str, modules: dict[str, Module], algo: str, family: Family) -> dict[str, Tensor]:
    """{path of a layer: its parts} → {key of the program `keys`: tensor}. Raises InputError for other algorithms than LoRA."""
    if algo != LORA:
        raise InputError(f"--keys: {keys} is for {LORA}, and this slider is {algo}: leave it out.")
    naming, joined = family.namings[keys], joined_layers(modules, family)
    if naming.separate:
        for whole in joined.keys() & modules.keys():
            count = len(joined[whole])
            modules = {**modules, **dict(zip(joined[whole], parted(modules[whole], count), strict=True))}
            del modules[whole]
    spelling, found = SPELLINGS[naming.spelling], {}
    for name, parts in modules.items():
        found |= {f"{naming.key(name)}.{part}": tensor.contiguous() for part, tensor in spelling.written(parts).items()}
    return found


def _described(fitted: Fitted) -> str:
    """`c3lier noxattn, *.proj_in and 2 other patterns: lora rank 4 alpha 2, 366 layers`"""
    network, count = fitted.network, len(fitted.modules)
    choice = f"{network.type} {network.training_method}"
    if network.include:
        first, *others = (item.pattern for item in network.include)
        choice += f", {first}" + (f" and {len(others)} other patterns" if others else "")
    rank = f"rank {network.rank}" if len(network.ranks) == 1 else "several ranks, most of them " + str(network.rank)
    return f"{choice}: {network.algo} {rank} alpha {network.alpha:g}, {count} layers"


def _notes(fitted: Fitted, alpha: float | None) -> Iterator[str]:
    layers, algorithm = fitted.layers, ALGORITHMS[fitted.network.algo]
    if layers.text_encoders:
        yield (
            f"{layers.text_encoders} keys are for text encoders and were left out, because a slider changes no text encoder: it "
            "does less than the original, if that was trained with them."
        )
    if layers.of_processors and alpha is None:
        yield "it is of diffusers' attention processors, which apply no alpha, so alpha is the rank: otherwise give --alpha."
    before, after = (
        a.keys() - b.keys() for a, b in ((layers.modules, fitted.modules), (fitted.modules, layers.modules))
    )
    if before:
        yield f"{len(before)} adaptors of query, key and value are written as {len(after)} that compute the same."
    if all(algorithm.is_zero(parts) for parts in fitted.modules.values()):
        yield "all its weights are zero where that matters, so it changes nothing at any multiplier: was it trained at all?"


def _similar(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], family: Family, model: str
) -> Iterator[Family]:
    """The other versions of models whose layers have the names and sizes that the file's have."""
    for other in VERSIONS:
        if other is not family:
            with suppress(InputError):
                _fit(path, tensors, metadata, other, TINY if model == TINY else other.facts.example, 1.0)
                yield other


def _version_notes(path: Path, metadata: dict[str, str], family: Family, similar: list[Family]) -> list[str]:
    """Where the layers are no evidence, the metadata decide. Raises InputError if they state another version."""
    stated = stated_version(metadata)
    if stated in similar:
        raise InputError(
            f"{path}: its metadata say that it is for {stated.facts.title}, not {family.facts.title}: give --family "
            f"{stated.facts.name}."
        )
    if not similar or stated is family:
        return []
    titles = either(other.facts.title for other in similar)
    return [
        f"its layers fit {titles} as well as {family.facts.title}, so --family could not be checked: make sure that it is right."
    ]


def _metadata(
    source: Path, target: Path, known: dict[str, str], network: Network, family: Family, reverse: bool
) -> dict[str, str]:
    """What web UIs and `open_slider` read. Of a slider of this project also what is known about its training."""
    kept = {} if stored_settings(known) is None else known
    config = json.loads(kept.get("sliders.config", "{}"))
    return {
        **family.metadata(None),
        **{key: value for key, value in kept.items() if not (reverse and key == CARD)},
        **file_metadata(target.stem, network, time.time()),
        "sliders.config": json.dumps({**config, "network": network.model_dump()}),
        "sliders.converted_from": source.name + (", reversed" if reverse else ""),
    }
