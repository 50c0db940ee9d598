"""Slider files: .safetensors with the keys that web UIs know, written whole or not at all."""

import errno
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import Network
from sliders.models import Family
from sliders.system.errors import InputError, cannot_be_read
from sliders.system.files import written_whole


def slider_tensors(network: AdaptorNetwork, family: Family, dtype: torch.dtype) -> dict[str, Tensor]:
    """{key as web UIs read it: tensor on the CPU}. `alpha` stays float32, for a loader divides by it."""
    found = {}
    for path, parts in network.tensors().items():
        for part, tensor in parts.items():
            kept = torch.float32 if part == "alpha" else dtype
            found[f"{family.file_key(path)}.{part}"] = tensor.to("cpu", kept).contiguous()
    return found


def save_slider(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], family: Family) -> None:
    """Write `path` under a temporary name, read it back, check it, then give it its name.

    Raises OSError if the disk does not take or keep it; nothing then bears the name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_bytes(serialize(tensors, metadata))
        _check_written(temporary, tensors, family)


def serialize(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A .safetensors file's bytes, the same for the same content.

    The library writes metadata in an order that changes from process to process, so the header is written here: eight
    bytes of its length, then JSON. `sshs_model_hash` is sha256 of all bytes behind the header, by which A1111 tells
    files apart whatever their metadata say.
    """
    raw = save(tensors)
    start = 8 + int.from_bytes(raw[:8], "little")
    body = raw[start:]
    metadata = dict(sorted({**metadata, "sshs_model_hash": hashlib.sha256(body).hexdigest()}.items()))
    text = json.dumps({"__metadata__": metadata, **json.loads(raw[8:start])}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns tensors to eight bytes
    return len(text).to_bytes(8, "little") + text + body


def _check_written(path: Path, tensors: dict[str, Tensor], family: Family) -> None:
    unknown = sorted({key.split(".", 1)[0] for key in tensors} - family.file_keys())
    if unknown:
        raise RuntimeError(
            f"{path}: {len(unknown)} modules are not {family.facts.title}'s, so no web UI would load them: {unknown[:3]}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            same = set(file.keys()) == set(tensors) and all(
                torch.equal(file.get_tensor(k), t) for k, t in tensors.items()
            )
    except SafetensorError:
        same = False
    if not same:
        raise OSError(errno.EIO, "what was read back is not what was written, so the disk may be failing", str(path))


def load_slider(path: Path, network: AdaptorNetwork, family: Family) -> None:
    """Put a saved slider's weights into a network of the same layers. Raises InputError if any layer differs."""
    with _opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, part = key.partition(".")
        parts.setdefault(module, {})[part] = tensor
    keys = _keys(network, family)
    _check_same_layers(path, keys, set(parts))
    _check_shapes(path, network, keys, {key: {p: t.shape for p, t in found.items()} for key, found in parts.items()})
    for key, adaptor in zip(keys.values(), network.adaptors, strict=True):
        adaptor.load_tensors(parts[key])


def _keys(network: AdaptorNetwork, family: Family) -> dict[str, str]:
    """{module path: its key in a file}"""
    return {module: family.file_key(module) for module in network.module_paths}


def _check_same_layers(path: Path, keys: dict[str, str], modules: set[str]) -> None:
    differing = sorted(set(keys.values()) ^ modules)
    if differing:
        raise InputError(
            f"{path}: {len(differing)} layers are not the network's, such as {differing[0]}: choose the settings it was made with."
        )


def _check_shapes(
    path: Path, network: AdaptorNetwork, keys: dict[str, str], shapes: dict[str, dict[str, torch.Size]]
) -> None:
    for module, parts in network.tensors().items():
        found = shapes[keys[module]]
        if {part: t.shape for part, t in parts.items()} != found:
            raise InputError(
                f"{path}: {keys[module]} is of another size than the model's layer: sample it with the model it was trained on."
            )


def slider_layers(path: Path, family: Family) -> Network:
    """Which layers a slider of this project has, from its metadata. Raises InputError for other files."""
    keys, metadata = _read_header(path)
    modules = {key.partition(".")[0] for key in keys}
    if not modules or not modules <= family.file_keys():
        raise InputError(
            f"{path}: is not a slider for {family.facts.title} (its layers are named like {_example_of(modules, family)}): choose one "
            f"for {family.facts.title}; convert_slider.py converts sliders of the original trainers."
        )
    try:
        return Network.model_validate(json.loads(metadata["sliders.config"])["network"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path}: does not say how it was made, so it is no slider of this trainer: choose one, or convert it with convert_slider.py."
        ) from error


def _example_of(modules: set[str], family: Family) -> str:
    return min(modules - family.file_keys(), default="nothing")


def check_slider(path: Path, unet: nn.Module, family: Family) -> dict[str, str]:
    """Does a slider fit the model? `unet` may be weightless, on the meta device. Returns the slider's metadata.

    Raises InputError for files that are no sliders, for another model family's, and for those of a model of other sizes.
    """
    settings = slider_layers(path, family)
    with _opened(path) as file:
        shapes = {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no dict
        metadata = file.metadata()
    check_fit(path, shapes, unet, settings, family)
    return metadata


def check_fit(path: Path, shapes: dict[str, torch.Size], unet: nn.Module, settings: Network, family: Family) -> None:
    """Raises InputError, naming `path`, unless tensors of these shapes are a network of `settings` on `unet`."""
    with torch.device("meta"):
        network = AdaptorNetwork(unet, settings)
    network.remove()
    parts: dict[str, dict[str, torch.Size]] = {}
    for key, shape in shapes.items():
        module, _, part = key.partition(".")
        parts.setdefault(module, {})[part] = shape
    keys = _keys(network, family)
    _check_same_layers(path, keys, set(parts))
    _check_shapes(path, network, keys, parts)


def open_slider(path: Path, unet: nn.Module, family: Family) -> AdaptorNetwork:
    """A slider of this project, attached to `unet` with the settings in its metadata."""
    network = AdaptorNetwork(unet, slider_layers(path, family))
    load_slider(path, network, family)
    return network


def _read_header(path: Path) -> tuple[list[str], dict[str, str]]:
    """Keys and metadata, without the tensors."""
    with _opened(path) as file:
        return list(file.keys()), file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: {cannot_be_read(error)}.") from error
    except SafetensorError as error:
        raise InputError(f"{path}: is no readable .safetensors file: choose another.") from error
