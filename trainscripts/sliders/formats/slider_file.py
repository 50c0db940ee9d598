"""Slider files: .safetensors with the keys that web UIs know, complete or absent."""

import errno
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sliders.adaptors import ALGORITHMS
from sliders.adaptors.base import ALPHA
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import Network
from sliders.models import Family
from sliders.system.errors import InputError
from sliders.system.files import written_whole
from sliders.system.weight_files import WeightFile, open_weights, read_weights

T = TypeVar("T")


def slider_tensors(network: AdaptorNetwork, family: Family, dtype: torch.dtype) -> dict[str, Tensor]:
    """{key as web UIs read it: tensor on the CPU}, in `dtype`, except alpha: float32, because loaders divide it by rank."""
    found = {}
    for path, adaptor in zip(network.module_paths, network.adaptors, strict=True):
        parts = {part: tensor.cpu() for part, tensor in adaptor.tensors().items()}
        for part, tensor in adaptor.for_files(parts, adaptor.base).items():
            kept = torch.float32 if part == ALPHA else dtype
            found[f"{family.file_key(path)}.{part}"] = tensor.to(kept).contiguous()
    return found


def save_slider(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], family: Family) -> None:
    """Writes a temporary file, verifies what it reads back, and renames the file to `path`.

    Raises OSError if the file cannot be written or reads back differently; `path` is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_bytes(serialize(tensors, metadata))
        _check_written(temporary, tensors, family)


def serialize(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Returns the bytes of a .safetensors file: equal content gives equal bytes.

    The library orders metadata differently in each process, so this writes the header itself: its length in eight bytes,
    then JSON. `sshs_model_hash`, by which A1111 identifies files whatever their metadata, is the SHA-256 of all bytes
    after the header.
    """
    return _with_metadata(save(tensors), metadata)


def _with_metadata(raw: bytes, metadata: dict[str, str]) -> bytes:
    """The bytes of a .safetensors file, with `metadata` added to its own."""
    start = 8 + int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8:start]), raw[start:]
    metadata = {**header.pop("__metadata__", {}), **metadata, "sshs_model_hash": hashlib.sha256(body).hexdigest()}
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns tensors to eight bytes
    return len(text).to_bytes(8, "little") + text + body


def add_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Adds to a slider's metadata. Its weights, and with them its hash, stay the same. Raises OSError; the file is then as before."""
    content = _with_metadata(path.read_bytes(), metadata)
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def _check_written(path: Path, tensors: dict[str, Tensor], family: Family) -> None:
    unknown = sorted({key.split(".", 1)[0] for key in tensors} - family.file_keys())
    if unknown:
        raise RuntimeError(
            f"{path}: {len(unknown)} modules are not in {family.facts.title}, so web UIs would not load them: {unknown[:3]}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            same = set(file.keys()) == set(tensors) and all(
                torch.equal(_bits(file.get_tensor(k)), _bits(t)) for k, t in tensors.items()
            )
    except SafetensorError:
        same = False
    if not same:
        raise OSError(errno.EIO, "the file reads back differently than written, so the disk may be failing", str(path))


def _bits(tensor: Tensor) -> Tensor:
    """Its bytes: values that are not finite do not equal themselves."""
    return tensor.reshape(-1).view(torch.uint8)


def load_slider(path: Path, network: AdaptorNetwork, family: Family) -> None:
    """Loads a slider's weights into a network of the same layers. Raises InputError if layers or sizes differ."""
    tensors = read_slider(path)
    _check_shapes(path, {key: tensor.shape for key, tensor in tensors.items()}, network, family)
    parts = by_module(tensors)
    for module, adaptor in zip(network.module_paths, network.adaptors, strict=True):
        adaptor.load_tensors(parts[family.file_key(module)])
    network.set_multipliers(network.multipliers)  # an adaptor's gain may be another


def read_slider(path: Path) -> dict[str, Tensor]:
    """The tensors of a slider file. Raises InputError, also if a value is not finite."""
    tensors, _ = read_weights(path)
    check_values(path, tensors.items())
    return tensors


def by_module(found: dict[str, T]) -> dict[str, dict[str, T]]:
    """{MODULE.PART: value} → {MODULE: {PART: value}}"""
    modules: dict[str, dict[str, T]] = {}
    for key, value in found.items():
        module, _, part = key.partition(".")
        modules.setdefault(module, {})[part] = value
    return modules


def _check_shapes(path: Path, shapes: dict[str, tuple[int, ...]], network: AdaptorNetwork, family: Family) -> None:
    found = by_module(shapes)
    wanted = {
        family.file_key(module): adaptor for module, adaptor in zip(network.module_paths, network.adaptors, strict=True)
    }
    differing = sorted(wanted.keys() ^ found.keys())
    if differing:
        raise InputError(
            f"{path}: {len(differing)} layers differ from the network's, such as {differing[0]}: give the model it was trained on "
            "as --model, or get the complete file."
        )
    for key, adaptor in wanted.items():
        if not adaptor.accepts(found[key]):
            raise InputError(
                f"{path}: {key} has another size than the model's layer: give the model it was trained on as --model."
            )


def slider_layers(path: Path, family: Family) -> Network:
    """Reads a slider's network settings from its metadata. Raises InputError for a file that is not from this trainer."""
    file = open_slider_file(path)
    modules, metadata = {key.partition(".")[0] for key in file.stored}, file.metadata
    unknown = modules - family.file_keys()
    if unknown or not modules:
        raise InputError(
            f"{path}: is not a slider for {family.facts.title} (its layers are named like {min(unknown, default='nothing')}): "
            f"choose one for {family.facts.title}; convert_slider.py converts sliders of the original trainers."
        )
    if metadata.get("ss_v2", "") not in ("", family.metadata(None)["ss_v2"]):  # alike in layers, and often in sizes
        raise InputError(
            f"{path}: is a slider for another version than {family.facts.title}: choose one for {family.facts.title}, or the "
            "other version's model."
        )
    try:
        return Network.model_validate(json.loads(metadata["sliders.config"])["network"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path}: was not made by this trainer, because its metadata lack the network's settings: choose another slider, or "
            "convert it with convert_slider.py."
        ) from error


def check_slider(path: Path, unet: nn.Module, family: Family) -> dict[str, str]:
    """Checks that a slider fits the model, and returns its metadata. `unet` may be on the meta device, without weights.

    Raises InputError for a file that is not a slider, is for another model family or a model of other sizes, or has values
    that are not finite.
    """
    file = open_slider_file(path)
    shapes = {key: stored.shape for key, stored in file.stored.items()}
    check_fit(path, shapes, unet, slider_layers(path, family), family)
    read_slider(path)
    return file.metadata


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The key of the first tensor with a NaN or an infinity, None if there is none."""
    # torch has no isfinite for weights in 8 bits, and warns of a complex one that becomes a real one
    widened = ((key, tensor if tensor.is_complex() else tensor.float()) for key, tensor in tensors)
    return next((key for key, tensor in widened if not tensor.isfinite().all()), None)


def check_values(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raises InputError, naming `path` and the key, if a weight is NaN or infinite."""
    if key := not_finite(tensors):
        raise InputError(
            f"{path}: {key} contains NaN or infinite values, with which every picture is black: get an undamaged file, or train it "
            "again with a lower train.lr."
        )


def changes_nothing(path: Path, family: Family) -> bool:
    """Whether a slider that `check_slider` accepts adds nothing to any layer, like one that was never trained."""
    algorithm = ALGORITHMS[slider_layers(path, family).algo]
    return all(algorithm.is_zero(parts) for parts in by_module(read_slider(path)).values())


def check_fit(
    path: Path, shapes: dict[str, tuple[int, ...]], unet: nn.Module, settings: Network, family: Family
) -> None:
    """Raises InputError, naming `path`, unless {key: shape} are those of a network of `settings` on `unet`."""
    with torch.device("meta"):
        network = AdaptorNetwork(unet, settings)
    network.remove()
    _check_shapes(path, shapes, network, family)


def open_slider(path: Path, unet: nn.Module, family: Family) -> AdaptorNetwork:
    """Attaches a slider to `unet`, with the settings in its metadata. Raises InputError if it does not fit."""
    network = AdaptorNetwork(unet, slider_layers(path, family))
    load_slider(path, network, family)
    return network


def open_slider_file(path: Path) -> WeightFile:
    """The file's keys, shapes and metadata. Raises InputError."""
    return open_weights(path, f"{path}:")
