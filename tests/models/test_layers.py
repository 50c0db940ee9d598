"""At SDXL's real size: the adapted layers, the number of their weights, and their names in a slider file."""

import pytest
import torch
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import TRAINING_METHODS, Network
from sliders.models.layers import METHODS, select_layers
from sliders.models.sdxl.keys import file_key, sdxl_file_keys, sgm_name
from sliders.models.sdxl.narrow import NarrowSDXL, build_unet
from sliders.models.sdxl.unet import weightless_unet

GOLDEN = {  # {training_method: (lierla, c3lier)}, counted on SDXL-base with the original trainers
    "full": (560, 626),
    "noxattn": (280, 346),
    "innoxattn": (280, 346),
    "selfattn": (280, 280),
    "xattn": (280, 280),
    "xattn-strict": (210, 210),
    "noxattn-hspace": (40, 46),
    "noxattn-hspace-last": (0, 1),
}


@pytest.fixture(scope="module")
def sdxl_unet():
    return weightless_unet("stabilityai/stable-diffusion-xl-base-1.0")


def test_settings_and_layers_have_the_same_training_methods():
    assert set(GOLDEN) == set(METHODS) == set(TRAINING_METHODS)


@pytest.mark.parametrize("method", GOLDEN)
def test_layer_counts_of_sdxl(sdxl_unet, method):
    counts = tuple(len(select_layers(sdxl_unet, network_type, method)) for network_type in ("lierla", "c3lier"))
    assert counts == GOLDEN[method]


@pytest.mark.parametrize(
    ("network_type", "method", "parameters"),
    [("lierla", "noxattn", 2_662_400), ("c3lier", "noxattn", 4_320_000), ("c3lier", "full", 7_463_680)],
)
def test_parameter_counts_at_rank_4(sdxl_unet, network_type, method, parameters):
    with torch.device("meta"):
        network = AdaptorNetwork(sdxl_unet, Network(type=network_type, training_method=method))
    network.remove()
    assert network.num_parameters() == parameters


def test_every_layer_has_a_different_name_among_sdxls_module_names(sdxl_unet):
    keys = [file_key(path) for path in select_layers(sdxl_unet, "c3lier", "full")]
    assert len(set(keys)) == len(keys) == 626
    assert set(keys) <= sdxl_file_keys()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("down_blocks.0.resnets.1.conv1", "input_blocks.2.0.in_layers.2"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
        ("down_blocks.1.resnets.0.conv_shortcut", "input_blocks.4.0.skip_connection"),
        (
            "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k",
            "input_blocks.8.1.transformer_blocks.9.attn2.to_k",
        ),
        (
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
            "middle_block.1.transformer_blocks.0.attn1.to_out.0",
        ),
        ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
        ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
        ("up_blocks.2.resnets.2.conv2", "output_blocks.8.0.out_layers.3"),
    ],
)
def test_sgm_names(module, name):
    assert sgm_name(module) == name


def test_the_tiny_model_has_no_module_that_sdxl_lacks(sdxl_unet):
    with torch.device("meta"):
        tiny = build_unet(NarrowSDXL())
    assert {n for n, _ in tiny.named_modules()} <= {n for n, _ in sdxl_unet.named_modules()}
