"""Slider files: .safetensors with the keys that web UIs know, complete or absent."""

import errno
import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sliders.adaptors import ALGORITHMS
from sliders.adaptors.base import ALPHA
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import Network
from sliders.formats.spelling import Module, by_key, by_module
from sliders.models import Family
from sliders.system.errors import InputError
from sliders.system.files import atomic_write
from sliders.system.weight_files import WeightFile, open_weights

Shapes = dict[str, dict[str, tuple[int, ...]]]  # {prefix of a layer's keys: {part: shape}}
HASH = "sshs_model_hash"  # by which A1111 identifies sliders whatever their metadata: SHA-256 of all bytes after the header


@dataclass(frozen=True)
class Slider:
    """A slider's file, read and checked: its settings of `network`, its tensors and its metadata."""

    path: Path
    network: Network
    modules: dict[str, Module]  # {prefix of a layer's keys: its parts}
    metadata: dict[str, str]

    @property
    def changes_nothing(self) -> bool:
        """Whether it adds nothing to any layer, like one that was never trained."""
        algorithm = ALGORITHMS[self.network.algo]
        return all(algorithm.is_zero(parts) for parts in self.modules.values())


def slider_tensors(network: AdaptorNetwork, family: Family, dtype: torch.dtype) -> dict[str, Tensor]:
    """{key as web UIs read it: tensor on the CPU}, in `dtype`, except alpha: float32, because loaders divide it by rank."""
    modules = {}
    for path, adaptor in zip(network.module_paths, network.adaptors, strict=True):
        parts = {part: tensor.cpu() for part, tensor in adaptor.tensors().items()}
        modules[family.file_key(path)] = adaptor.for_files(parts, adaptor.base)
    found = by_key(modules, family)
    kept = {key: torch.float32 if key.endswith(f".{ALPHA}") else dtype for key in found}
    return {key: tensor.to(kept[key]).contiguous() for key, tensor in found.items()}


def save_slider(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], family: Family) -> None:
    """Writes a temporary file, verifies what it reads back, and renames the file to `path`.

    Raises OSError if the file cannot be written or reads back differently; `path` is then unchanged.
    """
    unknown = sorted(by_module(tensors, family).keys() - family.file_keys())
    if unknown:
        raise RuntimeError(
            f"{path}: {len(unknown)} modules are not in {family.facts.title}, so web UIs would not load them: {unknown[:3]}"
        )
    save_tensors(path, tensors, metadata)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """The same for tensors with any keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(serialize(tensors, metadata))
        _check_written(temporary, tensors)


def serialize(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Returns the bytes of a .safetensors file: equal content gives equal bytes.

    The library orders metadata differently in each process, so this writes the header itself: its length in eight bytes,
    then JSON.
    """
    return _with_metadata(save(tensors), metadata)


def _with_metadata(raw: bytes, metadata: dict[str, str]) -> bytes:
    """The bytes of a .safetensors file, with `metadata` added to its own."""
    header, body = _split(raw)
    metadata = {**header.pop("__metadata__", {}), **metadata, HASH: _hash(body)}
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns tensors to eight bytes
    return len(text).to_bytes(8, "little") + text + body


def _split(raw: bytes) -> tuple[dict, bytes]:
    """Header and tensors of a .safetensors file."""
    start = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:start]), raw[start:]


def content_hash(path: Path) -> str:
    """SHA-256 of a file's tensors as they are stored, whatever its metadata; of the whole of a pickle."""
    with suppress(ValueError):
        return _hash(_split(path.read_bytes())[1])
    return _hash(path.read_bytes())


def _hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def add_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Adds to a slider's metadata. Its weights, and with them its hash, stay the same. Raises OSError; the file is then as before."""
    content = _with_metadata(path.read_bytes(), metadata)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _check_written(path: Path, tensors: dict[str, Tensor]) -> None:
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


def check_slider(path: Path, denoiser: nn.Module, family: Family) -> Slider:
    """Reads a slider that fits the model. denoiser: on the meta device, without weights.

    Raises InputError for a file that is not a slider, is for another model family or a model of other sizes, or has values
    that are not finite.
    """
    file = open_weights(path, f"{path}:")
    shapes = _shapes(file, family)
    network = _settings_in(file, shapes, family)
    check_fit(path, shapes, denoiser, network, family)
    return Slider(path, network, by_module(_values(file), family), file.metadata)


def open_slider(path: Path, denoiser: nn.Module, family: Family) -> AdaptorNetwork:
    """Attaches a slider to `denoiser`, with the settings in its metadata. Raises InputError if it does not fit."""
    file = open_weights(path, f"{path}:")
    network = AdaptorNetwork(denoiser, _settings_in(file, _shapes(file, family), family))
    load_slider(file, network, family)
    return network


def load_slider(file: WeightFile, network: AdaptorNetwork, family: Family) -> None:
    """Loads a slider's weights into a network of the same layers. Raises InputError if layers or sizes differ."""
    _check_shapes(file.path, _shapes(file, family), network, family)
    parts = by_module(_values(file), family)
    for module, adaptor in zip(network.module_paths, network.adaptors, strict=True):
        adaptor.load_tensors(parts[family.file_key(module)])
    network.set_multipliers(network.multipliers)  # an adaptor's gain may be another


def _settings_in(file: WeightFile, shapes: Shapes, family: Family) -> Network:
    """Raises InputError for a file that is not from this trainer, or for another model family."""
    title, modules = family.facts.title, shapes.keys()
    unknown = modules - family.file_keys()
    if unknown or not modules:
        raise InputError(
            f"{file.path}: is not a slider for {title} (its layers are named like {min(unknown, default='nothing')}): "
            f"choose one for {title}; convert_slider.py converts sliders of the original trainers."
        )
    # other versions are alike in layers, and often in sizes
    if file.metadata.get("ss_v2", "") not in ("", family.metadata(None).get("ss_v2", "")):
        raise InputError(
            f"{file.path}: is a slider for another version than {title}: choose one for {title}, or the other version's model."
        )
    network = stored_settings(file.metadata)
    if network is None:
        raise InputError(
            f"{file.path}: was not made by this trainer, because its metadata lack the network's settings: choose another slider, "
            "or convert it with convert_slider.py."
        )
    return network


def stored_settings(metadata: dict[str, str]) -> Network | None:
    """The settings of `network` in a slider's metadata, None for a file of another program."""
    with suppress(KeyError, TypeError, ValueError):
        return Network.model_validate(json.loads(metadata["sliders.config"])["network"])
    return None


def _values(file: WeightFile) -> dict[str, Tensor]:
    tensors = file.read_all()
    check_values(file.path, tensors.items())
    return tensors


def _shapes(file: WeightFile, family: Family) -> Shapes:
    empty = {key: torch.empty(shape, device="meta") for key, shape in file.shapes.items()}
    return shapes_of(by_module(empty, family))


def shapes_of(modules: dict[str, Module]) -> Shapes:
    return {module: {part: tensor.shape for part, tensor in parts.items()} for module, parts in modules.items()}


def _check_shapes(path: Path, found: Shapes, network: AdaptorNetwork, family: Family) -> None:
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


def check_fit(path: Path, shapes: Shapes, denoiser: nn.Module, settings: Network, family: Family) -> None:
    """Raises InputError, naming `path`, unless the shapes are those of a network of `settings` on `denoiser`."""
    with torch.device("meta"):
        network = AdaptorNetwork(denoiser, settings)
    network.remove()
    _check_shapes(path, shapes, network, family)


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
