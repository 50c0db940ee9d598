"""Files of each algorithm as web UIs and LyCORIS read them: their rules restated here, with the same pictures as result.

Each rule takes a module's parts and its weight, and returns what the loader adds to the weight at multiplier 1.
"""

import copy

import pytest
import torch
from lycoris import modules as lycoris
from networks import random_network, unet_output
from safetensors.torch import load_file
from sliders.adaptors import ALGORITHMS
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import Network
from sliders.formats.slider_file import save_slider, slider_tensors
from sliders.models.layers import select_layers
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.keys import file_key, sdxl_file_keys
from sliders.models.sdxl.narrow import build_narrow_sdxl

MULTIPLIERS = (-1.0, 0.67, 2.0)
CASES = {  # {name: settings of the network}
    **{algo: {"algo": algo} for algo in ALGORITHMS},
    "lokr of low rank": {"algo": "lokr", "rank": 2, "factor": 2},
}
# The parts by which a loader recognises each kind of module, and those that it also reads.
RECOGNISED = {
    "lora": {"lora_up.weight", "lora_down.weight"}, "loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    "glora": {"a1.weight", "a2.weight", "b1.weight", "b2.weight"}, "full": {"diff"},
}  # fmt: skip


def kind_of(parts):
    """A1111 tests for these sets of parts in turn, and aborts the file at a module that has none."""
    for kind, needed in RECOGNISED.items():
        if needed <= set(parts):
            return kind
    first = "lokr_w1" in parts or {"lokr_w1_a", "lokr_w1_b"} <= set(parts)
    second = "lokr_w2" in parts or {"lokr_w2_a", "lokr_w2_b"} <= set(parts)
    return "lokr" if first and second else None


def pair(parts, name):
    """A factor of LoKr, and the rank that it was multiplied from, if it was."""
    if name in parts:
        return parts[name], None
    return parts[f"{name}_a"] @ parts[f"{name}_b"], parts[f"{name}_b"].shape[0]


def kron(parts):
    (w1, rank1), (w2, rank2) = pair(parts, "lokr_w1"), pair(parts, "lokr_w2")
    w1 = w1[:, :, None, None] if w2.ndim == 4 else w1
    return torch.kron(w1, w2), rank2 or rank1


def a1111(parts, weight):
    """scale = alpha / dim, and 1 for a module that sets no dim. Reshapes to the weight's shape."""
    kind, dim = kind_of(parts), None
    if kind == "lora":
        dim = parts["lora_down.weight"].shape[0]
        updown = parts["lora_up.weight"].flatten(1) @ parts["lora_down.weight"].flatten(1)
    elif kind == "loha":
        dim = parts["hada_w1_b"].shape[0]
        updown = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    elif kind == "lokr":
        updown, dim = kron(parts)
    elif kind == "glora":  # the order of LyCORIS' first version
        updown = parts["b2.weight"] @ parts["b1.weight"] + (weight @ parts["a2.weight"]) @ parts["a1.weight"]
    else:
        updown = parts["diff"]
    scale = parts["alpha"].item() / dim if dim is not None and "alpha" in parts else 1.0
    return updown.reshape(weight.shape) * scale


def comfyui(parts, weight):
    """Forge computes the same. alpha / rank, and 1 for LoKr without rank and for a plain difference."""
    kind = kind_of(parts)
    alpha = parts["alpha"].item() if "alpha" in parts else None
    if kind == "full":
        return parts["diff"]
    if kind == "lora":
        rank = parts["lora_down.weight"].shape[0]
        change = parts["lora_up.weight"].flatten(1) @ parts["lora_down.weight"].flatten(1)
    elif kind == "loha":
        rank = parts["hada_w1_b"].shape[0]
        change = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    elif kind == "lokr":
        change, rank = kron(parts)
    else:
        change, rank = comfyui_glora(parts, weight)
    scale = alpha / rank if alpha is not None and rank is not None else 1.0
    return scale * change.reshape(weight.shape)


def comfyui_glora(parts, weight):
    """Tells the order of LyCORIS' first version from today's by the shapes, which a rank as large as a side would foil."""
    a1, a2, b1, b2 = (parts[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    rank = a1.shape[0] if old else None
    if b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]:
        square = weight.shape[0] == weight.shape[1]
        if not (old and a2.shape[0] == weight.shape[0] and square):
            old, rank = False, a2.shape[0]
    a1, a2, b1, b2 = (w.flatten(1) for w in (a1, a2, b1, b2))
    if old:
        return b2 @ b1 + (weight.flatten(1) @ a2) @ a1, rank
    moved = torch.einsum("oi...,ij,jk->ok...", weight, a1, a2)
    return moved + (b1 @ b2).view(weight.shape), rank


LOADERS = {"A1111": a1111, "ComfyUI and Forge": comfyui}


@pytest.fixture(scope="module")
def sliders(tmp_path_factory):
    """`sliders(case)`: the tiny UNet, {multiplier: its output with a slider of this kind}, and the slider's file."""
    folder, found = tmp_path_factory.mktemp("sliders"), {}

    def make(case):
        if case not in found:
            unet = build_narrow_sdxl().unet
            network = random_network(unet, **CASES[case])
            outputs = {}
            for multiplier in MULTIPLIERS:
                network.set_multipliers(torch.tensor([multiplier]))
                outputs[multiplier] = unet_output(unet)
            path = folder / f"{len(found)}.safetensors"
            save_slider(path, slider_tensors(network, SDXL_FAMILY, torch.float32), {}, SDXL_FAMILY)
            network.remove()
            found[case] = unet, outputs, path
        return found[case]

    return make


def by_module(unet, path):
    """{module path: parts} of a file."""
    names = {file_key(name): name for name in select_layers(unet, "c3lier", "full")}
    modules = {}
    for key, tensor in load_file(path).items():
        module, _, part = key.partition(".")
        modules.setdefault(names[module], {})[part] = tensor
    return modules


@torch.no_grad()
def assert_merged_equals(unet, outputs, modules, change):
    base = unet_output(unet)
    for multiplier, wanted in outputs.items():
        merged = copy.deepcopy(unet)
        for name, parts in modules.items():
            weight = merged.get_submodule(name).weight
            weight += multiplier * change(parts, weight.clone())
        assert (wanted - base).abs().max() > 1e-3
        assert (unet_output(merged) - wanted).abs().max() < 2e-5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loader", LOADERS)
def test_a_loader_makes_of_the_file_what_the_network_computed(sliders, loader, case):
    unet, outputs, path = sliders(case)
    modules = by_module(unet, path)
    if (loader, case) == ("A1111", "glora"):
        with pytest.raises(RuntimeError):
            assert_merged_equals(unet, outputs, modules, LOADERS[loader])
        return
    assert_merged_equals(unet, outputs, modules, LOADERS[loader])


@pytest.mark.parametrize("case", CASES)
def test_lycoris_makes_of_the_file_what_the_network_computed(sliders, case):
    """Through its modules' forward passes: LoKr's `get_diff_weight` and GLoRA's bypass would apply the gain twice."""
    unet, outputs, path = sliders(case)
    tensors, adapted = load_file(path), copy.deepcopy(unet).requires_grad_(False)
    made = []
    for name in by_module(unet, path):
        kind, found = lycoris.get_module(tensors, file_key(name))
        made.append(lycoris.make_module(kind, found, file_key(name), adapted.get_submodule(name)))
        made[-1].apply_to()
    for multiplier, wanted in outputs.items():
        for module in made:
            module.multiplier = multiplier
        assert (unet_output(adapted) - wanted).abs().max() < 5e-5


@pytest.mark.parametrize("case", CASES)
def test_every_part_of_a_file_of_sdxls_size_is_recognised(case):
    """Counts what is left over, of which Forge tolerates 12 tensors; A1111 aborts at a module without a kind."""
    with torch.device("meta"):
        unet = SDXL_FAMILY.weightless_denoiser("stabilityai/stable-diffusion-xl-base-1.0")
        network = AdaptorNetwork(unet, Network(type="c3lier", training_method="full", **CASES[case]))
    network.remove()
    found = network.tensors()
    assert len(found) == 626
    assert {file_key(name) for name in found} <= sdxl_file_keys()
    for parts in found.values():
        kind = kind_of(parts)
        assert kind == CASES[case]["algo"]
        lokr = {"lokr_w1", "lokr_w2"} if "lokr_w2" in parts else {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}
        assert set(parts) == RECOGNISED.get(kind, lokr) | ({"alpha"} - ({"alpha"} if kind == "full" else set()))


def test_the_rules_tell_wrong_files_from_right_ones(sliders):
    """Rules that accepted everything would prove nothing."""
    unet, outputs, path = sliders("loha")
    modules = by_module(unet, path)
    weaker = {name: {p: t / 2 if p == "alpha" else t for p, t in parts.items()} for name, parts in modules.items()}
    with pytest.raises(AssertionError):
        assert_merged_equals(unet, outputs, weaker, comfyui)
    assert kind_of({"hada_w1_a": 0, "hada_w1_b": 0, "hada_w2_a": 0}) is None


def test_a_glora_as_large_as_the_layer_is_not_misread(sliders):
    """At that rank the shapes of both orders are the same."""
    unet = build_narrow_sdxl().unet
    network = random_network(unet, algo="glora", rank=4096)
    for name, parts in network.tensors().items():
        weight = unet.get_submodule(name).weight
        assert parts["a2.weight"].shape[0] < min(weight.shape[:2])
    network.remove()
