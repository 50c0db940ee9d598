"""Converts sliders of other trainers to slider files of this one, with the keys and metadata that web UIs expect."""

import json
import re
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from sliders import __version__
from sliders.adaptors import ALGORITHMS
from sliders.adaptors.base import ALPHA
from sliders.config.schema import Network
from sliders.formats.metadata import network_metadata
from sliders.formats.slider_file import check_fit, check_values, save_slider
from sliders.models import Family
from sliders.models.layers import BLOCKS, METHODS, select_layers
from sliders.system.errors import InputError, either

PARTS = {  # suffix of a key → our name of the part
    **{f".{part}": part for algorithm in ALGORITHMS.values() for part in (*algorithm.PARTS, ALPHA)},
    **{f".{end}.weight": "lora_down.weight" for end in ("lora_A", "lora_A.default", "lora.down")},
    **{f".{end}.weight": "lora_up.weight" for end in ("lora_B", "lora_B.default", "lora.up")},
}
PREFIXES = ("lora_unet_", "lycoris_", "unet_", "diffusion_model_", "model_diffusion_model_", "base_model_model_")
Module = dict[str, Tensor]  # {part: tensor} of one layer


def convert(
    source: Path, target: Path, model: str, family: Family, alpha: float | None = None, reverse: bool = False
) -> Network:
    """Converts `source`, a slider of the original trainers, or another file of a known algorithm and the same layers, to `target`.

    model: the one that it is for, of which no weights are loaded. alpha: used where the file contains none. reverse:
    negates the slider. Returns the network's settings. Raises InputError if `source` cannot be converted.
    """
    unet = family.weightless_denoiser(model)
    modules = _by_module(source, _read(source), _module_names(unet, family))
    network = _settings(source, unet, modules, alpha)
    algorithm = ALGORITHMS[network.algo]
    tensors: dict[str, Tensor] = {}
    for name, parts in modules.items():
        layer = unet.get_submodule(name)
        weights = {part: _shaped(layer, weight) for part, weight in parts.items() if part != ALPHA}
        if algorithm.HAS_ALPHA:
            weights[ALPHA] = parts.get(ALPHA, torch.tensor(network.alpha)).float().reshape(())
        weights = algorithm.scaled(weights, -1.0) if reverse else weights
        tensors |= {f"{family.file_key(name)}.{part}": weight for part, weight in weights.items()}
    check_fit(source, {key: tensor.shape for key, tensor in tensors.items()}, unet, network, family)
    save_slider(target, tensors, _metadata(source, target, network, family, reverse), family)
    return network


def _read(path: Path) -> dict[str, Tensor]:
    """Reads a .safetensors file, or a pickle through torch's weights-only unpickler, which runs no code."""
    try:
        if path.suffix.lower() == ".safetensors":
            tensors = load(path.read_bytes())  # not mapped: Windows could not replace it (not verified on Windows)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
            found = found.get("state_dict", found)
            tensors = {key: value if isinstance(value, Tensor) else torch.tensor(value) for key, value in found.items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}): check the path.") from error
    except SafetensorError as error:
        raise InputError(f"{path}: is not a complete .safetensors file: download it again.") from error
    except Exception as error:  # unpickling untrusted bytes can raise nearly anything
        raise InputError(
            f"{path}: is damaged, or contains code, which is never run: get a file that contains weights alone."
        ) from error
    check_values(path, tensors.items())
    return {key: value.detach().contiguous() for key, value in tensors.items()}


def _module_names(unet: nn.Module, family: Family) -> dict[str, str]:
    """{name of a layer, in either spelling, with underscores for dots: its path in diffusers' UNet}."""
    layers = select_layers(unet, "c3lier", "full")
    return {spelling.replace(".", "_"): path for path in layers for spelling in family.spellings(path)}


def _by_module(path: Path, tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Module]:
    """{path in diffusers' UNet: parts}. Raises InputError if a key is unknown or a part is missing."""
    modules: dict[str, Module] = {}
    unknown = []
    for key, tensor in tensors.items():
        end = next((end for end in PARTS if key.endswith(end)), None)
        name = names.get(_bare(key.removesuffix(end))) if end else None
        if end is None or name is None:
            unknown.append(key)
            continue
        modules.setdefault(name, {})[PARTS[end]] = tensor
    if unknown or not modules:
        what = f"{len(unknown)} of {len(tensors)} keys, such as {min(unknown)}, are" if unknown else "its content is"
        raise InputError(
            f"{path}: {what} not part of a {either(ALGORITHMS)} of the model's attention or ResNet layers: only such sliders can "
            "be converted, with their kind of model as --family."
        )
    return modules


def _algorithm(path: Path, modules: dict[str, Module]) -> str:
    """The algorithm of a file, as `network.algo` names it. Raises InputError if layers are incomplete or differ in it."""
    found = {}
    for name, parts in modules.items():
        algo = next((a for a, algorithm in ALGORITHMS.items() if algorithm.is_complete(parts)), None)
        if algo is None:
            raise InputError(f"{path}: {name} has only a part of its weights: get the complete file.")
        found.setdefault(algo, name)
    if len(found) > 1:
        raise InputError(
            f"{path}: mixes {' and '.join(found)}, as in {' and '.join(found.values())}: use the file as it is."
        )
    return next(iter(found))


def _bare(key: str) -> str:
    """Removes what compilers and libraries add to a layer's name."""
    name = re.sub("_+", "_", key.replace(".", "_").replace("_orig_mod_", "_")).removeprefix("_")
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _settings(path: Path, unet: nn.Module, modules: dict[str, Module], alpha: float | None) -> Network:
    """The settings of a network with these layers, rank and alpha. Raises InputError if there are none."""
    algo = _algorithm(path, modules)
    algorithm = ALGORITHMS[algo]
    without = [name for name, parts in modules.items() if algorithm.HAS_ALPHA and ALPHA not in parts]
    if without and alpha is None:
        raise InputError(
            f"{path}: {len(without)} layers lack their alpha, so web UIs would guess it: add --alpha, with the alpha it was trained with."
        )
    alphas = [parts[ALPHA].item() for parts in modules.values() if ALPHA in parts] or [alpha or 1.0]
    if bad := [found for found in alphas if not 0 < found < float("inf")]:
        raise InputError(f"{path}: has an alpha of {bad[0]:g}, which is not a positive number: get an undamaged file.")
    chosen = {"algo": algo, "alpha": max(alphas), **algorithm.settings_of(list(modules.values()))}
    for network_type in BLOCKS:
        for method in METHODS:
            if set(select_layers(unet, network_type, method)) == set(modules):
                return Network(type=network_type, training_method=method, **chosen)
    raise InputError(
        f"{path}: its {len(modules)} layers are not those of any training_method: give the model it was trained on as --model, "
        "or use the file as it is."
    )


def _shaped(layer: nn.Module, weight: Tensor) -> Tensor:
    """Some trainers write a linear layer's weights as 1×1 convolutions."""
    return (weight.flatten(1) if isinstance(layer, nn.Linear) else weight).contiguous()


def _metadata(source: Path, target: Path, network: Network, family: Family, reverse: bool) -> dict[str, str]:
    """Only what web UIs and `open_slider` read, because nothing is known about the training."""
    return {
        **family.metadata(None),
        "ss_output_name": target.stem,
        **network_metadata(network),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": target.stem,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime()),
        "sliders.version": __version__,
        "sliders.config": json.dumps({"network": network.model_dump()}),
        "sliders.converted_from": source.name + (", reversed" if reverse else ""),
    }
