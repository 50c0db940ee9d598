"""At the real sizes of Stable Diffusion 1 and 2: the adapted layers, their weights, and their names in a slider file."""

import re

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import Network
from sliders.models.diffusers_unet.architecture import UNET
from sliders.models.layers import reachable_layers, select_layers
from sliders.models.sd.family import SD1_FAMILY, SD2_FAMILY
from sliders.models.sd.keys import file_key, original_sd_name, sd_file_keys
from sliders.models.sd.narrow import NarrowSD, build_unet
from sliders.models.sdxl.keys import sdxl_file_keys

# {training_method: (lierla, c3lier)}. 16 transformers with 4 layers in each of 2 attentions; 22 ResNets with 3 layers each,
# of which 14 have a shortcut; 3 down- and 3 upsamplers.
GOLDEN = {
    "full": (128, 214),
    "noxattn": (64, 150),
    "innoxattn": (64, 150),
    "selfattn": (64, 64),
    "xattn": (64, 64),
    "xattn-strict": (48, 48),
    "noxattn-hspace": (4, 10),
    "noxattn-hspace-last": (0, 1),
}
MODELS = {"SD 1": SD1_FAMILY, "SD 2": SD2_FAMILY}


@pytest.fixture(scope="module", params=MODELS)
def unet(request):
    family = MODELS[request.param]
    return family.weightless_denoiser(family.facts.example)


@pytest.fixture(scope="module")
def sd1_unet():
    return SD1_FAMILY.weightless_denoiser(SD1_FAMILY.facts.example)


def test_the_real_sizes(sd1_unet):
    """As published: 859,520,964 and 865,910,724 parameters."""
    assert sd1_unet.num_parameters() == 859_520_964
    assert SD2_FAMILY.weightless_denoiser(SD2_FAMILY.facts.example).num_parameters() == 865_910_724


@pytest.mark.parametrize("method", UNET.methods)
def test_layer_counts(unet, method):
    counts = tuple(len(select_layers(unet, network_type, method)) for network_type in ("lierla", "c3lier"))
    assert counts == GOLDEN[method]


def test_a_rank_4_lora_of_all_attention_has_the_known_number_of_parameters(sd1_unet):
    """797,184 is what diffusers' and the first LoRA trainers report for SD 1.5."""
    with torch.device("meta"):
        network = AdaptorNetwork(sd1_unet, Network(type="lierla", training_method="full"))
    network.remove()
    assert network.num_parameters() == 797_184


def test_every_layer_has_a_different_name_among_those_of_kohyas_scripts(unet):
    """The independent list is all that their scripts adapt: 192 layers of transformers and 86 of convolutional blocks."""
    keys = [file_key(path) for path in select_layers(unet, "c3lier", "full")]
    assert len(set(keys)) == len(keys) == 214
    assert set(keys) <= sd_file_keys()
    assert len(sd_file_keys()) == 278
    classes = ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")
    found = {
        f"lora_unet_{name}.{child}".replace(".", "_")
        for name, module in unet.named_modules() if type(module).__name__ in classes
        for child, layer in module.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }  # fmt: skip
    assert found == sd_file_keys()


def test_a_key_as_kohyas_scripts_write_it():
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert file_key(path) == "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def test_no_slider_for_sdxl_can_be_taken_for_one_of_these():
    assert not sd_file_keys() & sdxl_file_keys()


def test_the_tiny_models_have_the_same_layers(unet):
    v2 = unet.config.use_linear_projection
    with torch.device("meta"):
        tiny = build_unet(NarrowSD(), v2)
    assert list(select_layers(tiny, "c3lier", "full")) == list(select_layers(unet, "c3lier", "full"))
    assert {n for n, _ in tiny.named_modules()} == {n for n, _ in unet.named_modules()}


def test_every_layer_that_patterns_reach_has_a_key_that_web_uis_know(unet):
    keys = [file_key(path) for path in reachable_layers(unet)]
    assert len(keys) == len(set(keys)) == 278
    assert set(keys) == sd_file_keys()


def checkpoint_modules():
    """Layers of the original checkpoint, by counting through its blocks: input_blocks 1 to 11, output_blocks 0 to 11."""
    resnet = ("in_layers.2", "emb_layers.1", "out_layers.3")
    attention = [
        f"1.transformer_blocks.0.{a}.{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    inner = {}
    for i in (1, 2, 4, 5, 7, 8, 10, 11):
        shortcut = ["0.skip_connection"] if i in (4, 7) else []
        inner[f"input_blocks.{i}"] = [f"0.{p}" for p in resnet] + shortcut + (attention if i < 10 else [])
    inner |= {f"input_blocks.{i}": ["0.op"] for i in (3, 6, 9)}
    inner["middle_block"] = [f"{i}.{p}" for i in (0, 2) for p in resnet] + attention
    for i in range(12):
        inner[f"output_blocks.{i}"] = [f"0.{p}" for p in (*resnet, "skip_connection")] + (attention if i > 2 else [])
    for i, place in ((2, 1), (5, 2), (8, 2)):
        inner[f"output_blocks.{i}"].append(f"{place}.conv")
    return {f"{block}.{layer}" for block, layers in inner.items() for layer in layers}


def a1111(key):
    """A1111's rule for names that begin like diffusers': the module of the original checkpoint, with underscores."""
    names = {
        "conv1": "in_layers_2",
        "conv2": "out_layers_3",
        "time_emb_proj": "emb_layers_1",
        "conv_shortcut": "skip_connection",
    }
    name = key.removeprefix("lora_unet_")
    if m := re.fullmatch(r"(down|up)_blocks_(\d)_(attentions|resnets)_(\d)_(.+)", name):
        block, index = ("input", 1) if m[1] == "down" else ("output", 0)
        return f"{block}_blocks_{index + 3 * int(m[2]) + int(m[4])}_{int(m[3] == 'attentions')}_{names.get(m[5], m[5])}"
    if m := re.fullmatch(r"mid_block_(attentions|resnets)_(\d)_(.+)", name):
        return f"middle_block_{1 if m[1] == 'attentions' else 2 * int(m[2])}_{names.get(m[3], m[3])}"
    if m := re.fullmatch(r"down_blocks_(\d)_downsamplers_0_conv", name):
        return f"input_blocks_{3 + 3 * int(m[1])}_0_op"
    if m := re.fullmatch(r"up_blocks_(\d)_upsamplers_0_conv", name):
        return f"output_blocks_{2 + 3 * int(m[1])}_{2 if int(m[1]) else 1}_conv"
    return None


def test_a1111_finds_every_layer_of_the_original_checkpoint(unet):
    modules = {module.replace(".", "_") for module in checkpoint_modules()}
    layers = select_layers(unet, "c3lier", "full")
    assert {a1111(file_key(path)) for path in layers} == modules
    assert {original_sd_name(path) for path in layers} == checkpoint_modules()


def test_diffusers_conversion_finds_every_layer(unet):
    with torch.device("meta"):
        network = AdaptorNetwork(unet, Network(type="c3lier", training_method="full"))
    network.remove()
    state = {
        f"{file_key(path)}.{part}": torch.ones(()) if part == "alpha" else tensor
        for path, parts in network.tensors().items() for part, tensor in parts.items()
    }  # fmt: skip
    converted, _ = _convert_non_diffusers_lora_to_diffusers(state)
    found = {k.removeprefix("unet.") for k in convert_unet_state_dict_to_peft(converted)}
    assert found == {f"{path}.lora_{part}.weight" for path in network.module_paths for part in "AB"}
