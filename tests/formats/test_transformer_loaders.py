"""Slider files of FLUX.2 [klein] and Z-Image at full size against the rules of the programs that read them, restated here.

A rule maps what a key begins with to a layer of the program's own network and to rows of that layer. ComfyUI and Forge Neo
have the original checkpoint's layers, in which query, key and value are one; SD.Next has those of diffusers.
"""

import re

import pytest
import torch
from diffusers import Flux2KleinPipeline, ZImagePipeline
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import Network
from sliders.formats.spelling import by_key
from sliders.models import FAMILIES

WIDTH = {"flux2": 3072, "zimage": 3840}
QKV = ("to_q", "to_k", "to_v")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
CHOICES = {
    "klein c3lier full": ("flux2", {"type": "c3lier", "training_method": "full"}, 80),
    "klein lierla noxattn": ("flux2", {"type": "lierla", "training_method": "noxattn"}, 50),
    "Z-Image c3lier full": ("zimage", {"type": "c3lier", "training_method": "full"}, 210),
    "Z-Image, all": ("zimage", {"type": "c3lier", "include": ["*adaLN*", "*_refiner*"]}, 270),
}


def klein_layers():
    """{layer of the original checkpoint: (out, in)}"""
    width, inner, found = WIDTH["flux2"], 3 * WIDTH["flux2"], {}
    for block in range(5):
        for stream in ("img", "txt"):
            found[f"double_blocks.{block}.{stream}_attn.qkv"] = (3 * width, width)
            found[f"double_blocks.{block}.{stream}_attn.proj"] = (width, width)
            found[f"double_blocks.{block}.{stream}_mlp.0"] = (2 * inner, width)
            found[f"double_blocks.{block}.{stream}_mlp.2"] = (width, inner)
    for block in range(20):
        found[f"single_blocks.{block}.linear1"] = (3 * width + 2 * inner, width)
        found[f"single_blocks.{block}.linear2"] = (width, width + inner)
    return found


def zimage_layers():
    width, inner, found = WIDTH["zimage"], 10240, {}
    for block in (
        *(f"layers.{n}" for n in range(30)),
        *(f"{kind}_refiner.{n}" for kind in ("noise", "context") for n in (0, 1)),
    ):
        found[f"{block}.attention.qkv"] = (3 * width, width)
        found[f"{block}.attention.out"] = (width, width)
        found |= {f"{block}.feed_forward.{name}": (inner, width) for name in ("w1", "w3")}
        found[f"{block}.feed_forward.w2"] = (width, inner)
        if not block.startswith("context"):
            found[f"{block}.adaLN_modulation.0"] = (4 * width, 256)
    return found


def of_comfyui(family, prefix):
    """`lora_unet_` with underscores or `diffusion_model.` before the original name; for Z-Image also before diffusers'."""
    layers = klein_layers() if family == "flux2" else zimage_layers()
    names = {f"lora_unet_{name.replace('.', '_')}": name for name in layers} | {
        f"diffusion_model.{n}": n for n in layers
    }
    rows = slice(None)
    if family == "zimage" and (match := re.fullmatch(r"diffusion_model\.(.+\.attention)\.to_(q|k|v|out\.0)", prefix)):
        if match[2] == "out.0":
            return [(f"{match[1]}.out", layers[f"{match[1]}.out"], rows)]
        first = WIDTH[family] * "qkv".index(match[2])
        return [(f"{match[1]}.qkv", (WIDTH[family], WIDTH[family]), slice(first, first + WIDTH[family]))]
    return [(names[prefix], layers[names[prefix]], rows)] if prefix in names else []


KLEIN_IN_SDNEXT = {
    "img_attn_proj": ("attn.to_out.0",), "txt_attn_proj": ("attn.to_add_out",), "img_mlp_0": ("ff.linear_in",),
    "img_mlp_2": ("ff.linear_out",), "txt_mlp_0": ("ff_context.linear_in",), "txt_mlp_2": ("ff_context.linear_out",),
    "img_attn_qkv": tuple(f"attn.{name}" for name in QKV), "txt_attn_qkv": tuple(f"attn.{name}" for name in ADDED),
    "linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",),
}  # fmt: skip


def of_sdnext(family, prefix):
    """Rows of a layer in the file are those of several layers of diffusers' transformer."""
    if family == "zimage":
        name = prefix.removeprefix("diffusion_model.")
        return [(name, diffusers_shapes(family)[name], slice(None))]
    match = re.fullmatch(r"lora_unet_(single|double)_blocks_(\d+)_(.+)", prefix)
    blocks = "single_transformer_blocks" if match[1] == "single" else "transformer_blocks"
    layers, found = KLEIN_IN_SDNEXT[match[3]], []
    for number, layer in enumerate(layers):
        name = f"{blocks}.{match[2]}.{layer}"
        shape = diffusers_shapes(family)[name]
        found.append(
            (name, shape, slice(number * shape[0], (number + 1) * shape[0]) if len(layers) > 1 else slice(None))
        )
    return found


SHAPES = {}


def diffusers_shapes(family):
    """{layer: (out, in)} of diffusers' own transformer, not ours."""
    if family not in SHAPES:
        kind = FAMILIES[family].kind
        transformer = kind.build_empty("transformer", kind.usual)
        SHAPES[family] = {
            n: tuple(m.weight.shape) for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)
        }
    return SHAPES[family]


def slider(family, network):
    """{key: tensor} of a slider file without weights, and the number of its layers. Its alphas are real."""
    family = FAMILIES[family]
    with torch.device("meta"):
        found = AdaptorNetwork(family.weightless_denoiser(family.facts.example), Network(rank=2, **network))
    found.remove()
    modules = {}
    for path, adaptor in zip(found.module_paths, found.adaptors, strict=True):
        parts = adaptor.tensors()
        modules[family.file_key(path)] = {**parts, "alpha": torch.ones(())} if "alpha" in parts else parts
    return by_key(modules, family), len(modules)


@pytest.fixture(scope="module", params=CHOICES.values(), ids=CHOICES)
def file(request):
    family, network, layers = request.param
    tensors, count = slider(family, network)
    assert count == layers
    return family, tensors


@pytest.mark.parametrize("loader", ["ComfyUI", "Forge Neo", "SD.Next"])
def test_every_key_is_applied_to_rows_of_its_own_and_of_its_size(file, loader):
    family, tensors = file
    resolve, taken = {"SD.Next": of_sdnext}.get(loader, of_comfyui), set()
    down, up = ("lora_down.weight", "lora_up.weight") if family == "flux2" else ("lora_A.weight", "lora_B.weight")
    read = set()
    for prefix in {key.removesuffix(f".{down}") for key in tensors if key.endswith(f".{down}")}:
        targets = resolve(family, prefix)
        assert targets, prefix
        read |= {f"{prefix}.{down}", f"{prefix}.{up}", f"{prefix}.alpha"}
        rows = tensors[f"{prefix}.{up}"].shape[0]
        assert rows == sum(shape[0] for _, shape, _ in targets), prefix
        assert all(tensors[f"{prefix}.{down}"].shape[1] == shape[1] for _, shape, _ in targets), prefix
        places = [(name, of.start) if resolve is of_comfyui else name for name, _, of in targets]
        assert not taken & set(places)
        taken |= set(places)
    assert tensors.keys() <= read
    assert any(key.endswith(".alpha") for key in tensors) == (family == "flux2")


def test_diffusers_finds_every_layer(file):
    """Runs its conversion, and compares names and sizes with its own transformer."""
    family, tensors = file
    pipeline = {"flux2": Flux2KleinPipeline, "zimage": ZImagePipeline}[family]
    found = pipeline.lora_state_dict(dict(tensors))
    found = {key.removeprefix("transformer."): tensor for key, tensor in found.items()}
    layers = {key.split(".lora_")[0] for key in found}
    joined = sum("_attn_qkv.lora_down" in key for key in tensors)
    assert len(layers) == sum("lora_down" in key or "lora_A" in key for key in tensors) + 2 * joined
    for key, tensor in found.items():
        out, into = diffusers_shapes(family)[key.split(".lora_")[0]]
        assert tuple(tensor.shape) == ((2, into) if ".lora_A." in key else (out, 2))
