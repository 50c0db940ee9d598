"""Sliders of other makers → clean files of ours: every name, part and number where web UIs look for it."""

import json
import re
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from sliders import __version__
from sliders.config.schema import Network
from sliders.formats.slider_file import check_fit, save_slider
from sliders.models import Family
from sliders.models.layers import BLOCKS, METHODS, select_layers
from sliders.system.errors import InputError

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
PARTS = {  # a key's end → the part of ours
    ".lora_down.weight": DOWN, ".lora_up.weight": UP, ".alpha": ALPHA,
    ".lora_A.weight": DOWN, ".lora_B.weight": UP, ".lora_A.default.weight": DOWN, ".lora_B.default.weight": UP,
    ".lora.down.weight": DOWN, ".lora.up.weight": UP,
}  # fmt: skip
PREFIXES = ("lora_unet_", "lycoris_", "unet_", "diffusion_model_", "model_diffusion_model_", "base_model_model_")
Module = dict[str, Tensor]  # {part: tensor} of one layer


def convert(
    source: Path, target: Path, model: str, family: Family, alpha: float | None = None, reverse: bool = False
) -> Network:
    """Write `source`, a slider of the ancestors or another LoRA of the same layers, as `target`.

    `model`: the SDXL it is for, of which only the layers are looked at. `alpha` where the file holds none; `reverse`
    turns its direction round. Returns the network's settings. Raises InputError for what cannot be converted.
    """
    unet = family.weightless_denoiser(model)
    modules = _by_module(source, _read(source), _module_names(unet, family))
    network = _settings(source, unet, modules, alpha)
    tensors: dict[str, Tensor] = {}
    for name, parts in modules.items():
        down, up = (_shaped(unet.get_submodule(name), parts[part]) for part in (DOWN, UP))
        own = parts.get(ALPHA, torch.tensor(network.alpha)).float().reshape(())
        key = family.file_key(name)
        tensors |= {f"{key}.{DOWN}": down, f"{key}.{UP}": -up if reverse else up, f"{key}.{ALPHA}": own}
    check_fit(source, {key: tensor.shape for key, tensor in tensors.items()}, unet, network, family)
    save_slider(target, tensors, _metadata(source, target, network, family, reverse), family)
    return network


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a .pt through torch's weights-only unpickler, which runs no code."""
    try:
        if path.suffix.lower() == ".safetensors":
            return load(path.read_bytes())  # not mapped: Windows replaces no file that is
        found = torch.load(path, map_location="cpu", weights_only=True)
        found = found.get("state_dict", found)
        tensors = {key: value if isinstance(value, Tensor) else torch.tensor(value) for key, value in found.items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}): check the path.") from error
    except SafetensorError as error:
        raise InputError(f"{path}: is no whole .safetensors file: download it again.") from error
    except Exception as error:  # unpickling foreign bytes can raise nearly anything
        raise InputError(
            f"{path}: cannot be read as weights alone (damaged, or it holds code): it is not opened."
        ) from error
    return {key: value.detach().contiguous() for key, value in tensors.items()}


def _module_names(unet: nn.Module, family: Family) -> dict[str, str]:
    """{a layer's name in either spelling, dots as underscores: its path in diffusers' UNet}."""
    layers = select_layers(unet, "c3lier", "full")
    return {spelling.replace(".", "_"): path for path in layers for spelling in family.spellings(path)}


def _by_module(path: Path, tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Module]:
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
        shown = f"such as {min(unknown)}" if unknown else "none at all"
        raise InputError(
            f"{path}: {len(unknown)} of {len(tensors)} keys, {shown}, are not of a LoRA on SDXL's attention or ResNet layers: "
            "only such sliders can be converted."
        )
    lacking = sorted(name for name, parts in modules.items() if not {DOWN, UP} <= set(parts))
    if lacking:
        raise InputError(f"{path}: {lacking[0]} has only half of its weights: get the whole file.")
    return modules


def _bare(key: str) -> str:
    """Without what compilers and libraries put before and into a name."""
    name = re.sub("_+", "_", key.replace(".", "_").replace("_orig_mod_", "_")).removeprefix("_")
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _settings(path: Path, unet: nn.Module, modules: dict[str, Module], alpha: float | None) -> Network:
    """Which network has just these layers, rank and alpha."""
    rank = max(parts[DOWN].shape[0] for parts in modules.values())
    without = [name for name, parts in modules.items() if ALPHA not in parts]
    if without and alpha is None:
        raise InputError(
            f"{path}: {len(without)} layers lack their alpha, so that web UIs guess: add --alpha with the one it was trained at."
        )
    alphas = [parts[ALPHA].item() for parts in modules.values() if ALPHA in parts] or [alpha]
    if not 0 < min(alphas) <= max(alphas) < float("inf"):
        raise InputError(f"{path}: has an alpha of {min(alphas):g}, at which it does nothing: get the whole file.")
    for network_type in BLOCKS:
        for method in METHODS:
            if set(select_layers(unet, network_type, method)) == set(modules):
                return Network(type=network_type, training_method=method, rank=rank, alpha=max(alphas))
    raise InputError(
        f"{path}: its {len(modules)} layers are no set that a training_method stands for: name the model it was trained on "
        "with --model, or use the file as it is."
    )


def _shaped(layer: nn.Module, weight: Tensor) -> Tensor:
    """Some write a linear layer's weights as 1×1 convolutions."""
    return (weight.flatten(1) if isinstance(layer, nn.Linear) else weight).contiguous()


def _metadata(source: Path, target: Path, network: Network, family: Family, reverse: bool) -> dict[str, str]:
    """As little as web UIs need, and what `open_slider` reads; nothing is known of the training."""
    return {
        **family.metadata(),
        "ss_output_name": target.stem,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(network.rank),
        "ss_network_alpha": str(network.alpha),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": target.stem,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime()),
        "sliders.version": __version__,
        "sliders.config": json.dumps({"network": network.model_dump()}),
        "sliders.converted_from": source.name + (", reversed" if reverse else ""),
    }
