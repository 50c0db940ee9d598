"""Slider files: .safetensors with the keys and metadata that web UIs know, written whole or not at all."""

import errno
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sliders import __version__
from sliders.dataset import ScaleFolders
from sliders.errors import InputError, cannot_be_read
from sliders.files import written_whole
from sliders.models.schedule import EPSILON, V_PREDICTION
from sliders.models.sdxl_keys import file_key, sdxl_file_keys
from sliders.network import AdaptorNetwork
from sliders.schema import Network, Settings


def slider_tensors(network: AdaptorNetwork, dtype: torch.dtype) -> dict[str, Tensor]:
    """{key as web UIs read it: tensor on the CPU}. `alpha` stays float32, for a loader divides by it."""
    found = {}
    for path, parts in network.tensors().items():
        for part, tensor in parts.items():
            kept = torch.float32 if part == "alpha" else dtype
            found[f"{file_key(path)}.{part}"] = tensor.to("cpu", kept).contiguous()
    return found


def save_slider(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `path` under a temporary name, read it back, check it, then give it its name.

    Raises OSError if the disk does not take or keep it; nothing then bears the name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_bytes(serialize(tensors, metadata))
        _check_written(temporary, tensors)


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


def _check_written(path: Path, tensors: dict[str, Tensor]) -> None:
    unknown = sorted({key.split(".", 1)[0] for key in tensors} - sdxl_file_keys())
    if unknown:
        raise RuntimeError(
            f"{path}: {len(unknown)} modules are not SDXL's, so no web UI would load them: {unknown[:3]}"
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


def load_slider(path: Path, network: AdaptorNetwork) -> None:
    """Put a saved slider's weights into a network of the same layers. Raises InputError if any layer differs."""
    with _opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, part = key.partition(".")
        parts.setdefault(module, {})[part] = tensor
    wanted = [file_key(p) for p in network.module_paths]
    _check_same_layers(path, network, set(parts))
    _check_shapes(path, network, {key: {p: t.shape for p, t in found.items()} for key, found in parts.items()})
    for key, adaptor in zip(wanted, network.adaptors, strict=True):
        adaptor.load_tensors(parts[key])


def _check_same_layers(path: Path, network: AdaptorNetwork, modules: set[str]) -> None:
    differing = sorted({file_key(p) for p in network.module_paths} ^ modules)
    if differing:
        raise InputError(
            f"{path}: {len(differing)} layers are not the network's, such as {differing[0]}: choose the settings it was made with."
        )


def _check_shapes(path: Path, network: AdaptorNetwork, shapes: dict[str, dict[str, torch.Size]]) -> None:
    for module, parts in network.tensors().items():
        found = shapes[file_key(module)]
        if {part: t.shape for part, t in parts.items()} != found:
            raise InputError(
                f"{path}: {file_key(module)} is of another size than the model's layer: sample it with the model it was trained on."
            )


def slider_layers(path: Path) -> Network:
    """Which layers a slider of this project has, from its metadata. Raises InputError for other files."""
    keys, metadata = _read_header(path)
    modules = {key.partition(".")[0] for key in keys}
    if not modules or not modules <= sdxl_file_keys():
        raise InputError(
            f"{path}: is no slider for SDXL (its layers are named like {_example_of(modules)}): choose one for SDXL; "
            "convert_slider.py mends those of the ancestors."
        )
    try:
        return Network.model_validate(json.loads(metadata["sliders.config"])["network"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path}: does not say how it was made, so it is no slider of this trainer: choose one, or convert it with convert_slider.py."
        ) from error


def _example_of(modules: set[str]) -> str:
    return min(modules - sdxl_file_keys(), default="nothing")


def check_slider(path: Path, unet: nn.Module) -> dict[str, str]:
    """Does a slider fit the model? `unet` may be weightless, on the meta device. Returns the slider's metadata.

    Raises InputError for files that are no sliders, for another model family's, and for those of a model of other sizes.
    """
    settings = slider_layers(path)
    with _opened(path) as file:
        shapes = {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no dict
        metadata = file.metadata()
    check_fit(path, shapes, unet, settings)
    return metadata


def check_fit(path: Path, shapes: dict[str, torch.Size], unet: nn.Module, settings: Network) -> None:
    """Raises InputError, naming `path`, unless tensors of these shapes are a network of `settings` on `unet`."""
    with torch.device("meta"):
        network = AdaptorNetwork(unet, settings)
    network.remove()
    parts: dict[str, dict[str, torch.Size]] = {}
    for key, shape in shapes.items():
        module, _, part = key.partition(".")
        parts.setdefault(module, {})[part] = shape
    _check_same_layers(path, network, set(parts))
    _check_shapes(path, network, parts)


def open_slider(path: Path, unet: nn.Module) -> AdaptorNetwork:
    """A slider of this project, hung on `unet` with the settings that its metadata tell."""
    network = AdaptorNetwork(unet, slider_layers(path))
    load_slider(path, network)
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


def slider_metadata(
    settings: Settings, data: ScaleFolders, *, stem: str, steps: int, started: float, prediction: str
) -> dict[str, str]:
    """What web UIs show, and how the slider was made: strings only, JSON where a value has parts."""
    network, train = settings.network, settings.train
    resolution = max(p.resolution for p in settings.prompts)
    predicted = {EPSILON: "epsilon", V_PREDICTION: "v"}[prediction]
    buckets: dict[tuple[int, int], int] = {}
    for name in range(len(data.names)):
        size = data.fitted_size(name, resolution)
        buckets[size] = buckets.get(size, 0) + len(data.scales)
    folders = dict(zip(data.folders, data.scales, strict=True))
    found = {
        "ss_base_model_version": "sdxl_base_v1-0",  # without it A1111 takes any file with metadata for SD 1
        "ss_v2": "False",
        "ss_output_name": stem,
        "ss_network_module": "networks.lora",
        "ss_network_dim": network.rank,
        "ss_network_alpha": network.alpha,
        "ss_sd_model_name": _model_name(settings),
        "ss_training_started_at": started,
        "ss_steps": steps,
        "ss_max_train_steps": train.iterations,
        "ss_learning_rate": train.lr,
        "ss_optimizer": train.optimizer,
        "ss_lr_scheduler": train.lr_scheduler,
        "ss_seed": train.seed,
        "ss_mixed_precision": train.precision,
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_dataset_dirs": {f: {"n_repeats": 1, "img_count": len(data.names)} for f in data.folders},
        "ss_bucket_info": {
            "buckets": {str(i): {"resolution": s, "count": n} for i, (s, n) in enumerate(buckets.items())}
        },
        "ss_tag_frequency": {f: _tags(settings, len(data.names)) for f in data.folders},
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": stem,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(started)),
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.prediction_type": predicted,
        "sliders.version": __version__,
        "sliders.folders": folders,
        "sliders.prompts": [p.model_dump() for p in settings.prompts],
        "sliders.config": _shareable(settings),
        "sliders.versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "safetensors")},
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}


def _shareable(settings: Settings) -> dict:
    """The settings without where things lie on the user's disk: files like these are uploaded."""
    config = settings.model_dump(mode="json", include={"pretrained_model", "network", "train", "save", "other"})
    config["pretrained_model"] = {**config["pretrained_model"], "name_or_path": _model_name(settings), "config": None}
    del config["save"]["path"]
    return config


def _model_name(settings: Settings) -> str:
    """Hub id as it is, of a path only the last part."""
    name = settings.pretrained_model.name_or_path
    return Path(name).name if Path(name).exists() else name


def _tags(settings: Settings, count: int) -> dict[str, int]:
    """The prompts as tags, which A1111's card shows as training words; no empty one."""
    return {p: count for p in dict.fromkeys(s.positive for s in settings.prompts) if p}
