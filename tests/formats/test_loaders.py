"""Checks a slider file's keys at SDXL's full size against the naming rules of every loader, restated here.

A rule maps the part of a key before the first dot to a module of the loader's UNet, or to None. In A1111, Forge,
ComfyUI and kohya's scripts, modules have the original checkpoint's names; diffusers has its own.
"""

import re

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import Network
from sliders.models.layers import select_layers
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.keys import file_key, sdxl_file_keys, sgm_name

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
PARTS = ("lora_down.weight", "lora_up.weight", "alpha")
FORGE_TOLERATES = 12  # unmatched tensors; with more, it refuses the whole file
A1111_RESNET = {
    "conv1": "in_layers_2", "conv2": "out_layers_3", "norm1": "in_layers_0", "norm2": "out_layers_0",
    "time_emb_proj": "emb_layers_1", "conv_shortcut": "skip_connection",
}  # fmt: skip


@pytest.fixture(scope="module")
def unet():
    return SDXL_FAMILY.weightless_denoiser(SDXL)


@pytest.fixture(scope="module")
def checkpoint_modules():
    """Names of the original checkpoint's modules, with underscores for dots."""
    return {key.removeprefix("lora_unet_") for key in sdxl_file_keys()}


@pytest.fixture(scope="module")
def our_keys(unet):
    """{key: shape} of a c3lier slider with training_method full."""
    with torch.device("meta"):
        network = AdaptorNetwork(unet, Network(type="c3lier", training_method="full"))
    network.remove()
    return {
        f"{file_key(path)}.{part}": tuple(t.shape)
        for path, parts in network.tensors().items()
        for part, t in parts.items()
    }


def a1111(module: str, checkpoint: set[str]) -> str | None:
    """Removes `lora_unet_` and converts diffusers' names to the checkpoint's with five patterns."""

    def inner(kind, rest):
        return A1111_RESNET.get(rest, rest) if kind == "resnets" else rest

    name = module.replace("lora_unet_", "", 1) if module.startswith("lora_unet_") else None
    if name is None:
        return None
    if m := re.fullmatch(r"down_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", name):
        name = f"input_blocks_{1 + 3 * int(m[1]) + int(m[3])}_{int(m[2] == 'attentions')}_{inner(m[2], m[4])}"
    elif m := re.fullmatch(r"mid_block_(attentions|resnets)_(\d+)_(.+)", name):
        name = f"middle_block_{1 if m[1] == 'attentions' else 2 * int(m[2])}_{inner(m[1], m[3])}"
    elif m := re.fullmatch(r"up_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", name):
        name = f"output_blocks_{3 * int(m[1]) + int(m[3])}_{int(m[2] == 'attentions')}_{inner(m[2], m[4])}"
    elif m := re.fullmatch(r"down_blocks_(\d+)_downsamplers_0_conv", name):
        name = f"input_blocks_{3 + 3 * int(m[1])}_0_op"
    elif m := re.fullmatch(r"up_blocks_(\d+)_upsamplers_0_conv", name):
        name = f"output_blocks_{2 + 3 * int(m[1])}_{2 if int(m[1]) else 1}_conv"  # for SD 1, whose block 0 has no attention
    return name if name in checkpoint else None


# The other loaders resolve the checkpoint's names after `lora_unet_`, and diffusers' names after these prefixes.
# kohya's create_network_from_weights converts the latter first (convert_diffusers_to_sai_if_needed).
DIFFUSERS_PREFIXES = {
    "ComfyUI": ("lora_unet_", "lycoris_"), "Forge": ("lora_unet_", "lycoris_"), "kohya": ("lora_unet_",),
}  # fmt: skip


def resolve(loader, keys, unet, checkpoint) -> dict[str, str | None]:
    """{part of each key before the dot: name of the module it is applied to, or None}"""
    modules = {key.split(".", 1)[0] for key in keys}
    if loader == "A1111":
        return {m: a1111(m, checkpoint) for m in modules}
    table = {f"lora_unet_{name}": name for name in checkpoint}
    for path in select_layers(unet, "c3lier", "full"):
        for prefix in DIFFUSERS_PREFIXES[loader]:
            table[prefix + path.replace(".", "_")] = sgm_name(path).replace(".", "_")
    found = {m: table.get(m) for m in modules}
    lost = [key for key in keys if found[key.split(".", 1)[0]] is None]
    return dict.fromkeys(modules) if loader == "Forge" and len(lost) > FORGE_TOLERATES else found


@pytest.mark.parametrize("loader", ["A1111", "Forge", "ComfyUI", "kohya"])
def test_every_key_matches_a_different_module_of_the_loaders_unet(loader, our_keys, unet, checkpoint_modules):
    found = resolve(loader, our_keys, unet, checkpoint_modules)
    assert len(found) == 626
    assert [m for m, name in found.items() if name is None] == []
    assert len(set(found.values())) == 626
    assert all(module == f"lora_unet_{name}" for module, name in found.items())  # the module it was trained for


def test_diffusers_conversion_finds_every_layer(our_keys, unet):
    """Runs its functions on tensors without content, and checks paths and shapes."""
    state = {
        key: torch.ones(()) if key.endswith("alpha") else torch.empty(shape, device="meta")
        for key, shape in our_keys.items()
    }
    mapped = _maybe_map_sgm_blocks_to_diffusers(state, unet.config)
    converted, _ = _convert_non_diffusers_lora_to_diffusers(mapped)
    layers = select_layers(unet, "c3lier", "full")
    shapes = {k.removeprefix("unet."): tuple(t.shape) for k, t in convert_unet_state_dict_to_peft(converted).items()}
    assert set(shapes) == {f"{path}.lora_{part}.weight" for path in layers for part in "AB"}
    for path, layer in layers.items():
        rows, columns = layer.weight.shape[:2]
        assert (shapes[f"{path}.lora_B.weight"][0], shapes[f"{path}.lora_A.weight"][1]) == (rows, columns)


SPOILED = {
    "diffusers' spelling": lambda path: "lora_unet_" + path.replace(".", "_"),
    "LyCORIS' prefix": lambda path: "lycoris_" + path.replace(".", "_"),
    "compiled": lambda path: "lora_unet__orig_mod_" + path.replace(".", "_"),
}
LOST = {
    ("A1111", "diffusers' spelling"): {"lora_unet_up_blocks_0_upsamplers_0_conv"}, ("ComfyUI", "diffusers' spelling"): set(),
    ("Forge", "diffusers' spelling"): set(), ("kohya", "diffusers' spelling"): set(),
    ("A1111", "LyCORIS' prefix"): "all", ("ComfyUI", "LyCORIS' prefix"): set(), ("kohya", "LyCORIS' prefix"): "all",
    **{(loader, "compiled"): "all" for loader in ("A1111", "Forge", "ComfyUI", "kohya")},
}  # fmt: skip


@pytest.mark.parametrize(("loader", "spelling"), LOST)
def test_the_rules_lose_what_the_loaders_lose(loader, spelling, unet, checkpoint_modules):
    """As observed with the real loaders. Rules that matched every spelling would prove nothing."""
    keys = [f"{SPOILED[spelling](path)}.{part}" for path in select_layers(unet, "c3lier", "full") for part in PARTS]
    found = resolve(loader, keys, unet, checkpoint_modules)
    lost = {module for module, name in found.items() if name is None}
    assert lost == (set(found) if LOST[loader, spelling] == "all" else LOST[loader, spelling])
