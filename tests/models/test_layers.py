"""At SDXL's real size: the adapted layers, the number of their weights, and their names in a slider file."""

import pytest
import torch
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import TRAINING_METHODS, Network
from sliders.models.diffusers_unet.architecture import UNET
from sliders.models.layers import choose_layers, describe_choice, reachable_layers, select_layers
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.keys import file_key, sdxl_file_keys, sgm_name
from sliders.models.sdxl.narrow import NarrowSDXL, build_unet

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
    return SDXL_FAMILY.weightless_denoiser("stabilityai/stable-diffusion-xl-base-1.0")


def test_settings_and_layers_have_the_same_training_methods():
    assert set(GOLDEN) == set(UNET.methods) == set(TRAINING_METHODS)


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


def choose(unet, **settings):
    return choose_layers(
        unet, Network(**{"type": "c3lier", "training_method": "noxattn", "rank": 96, "alpha": 48, **settings})
    )


def test_every_layer_that_patterns_reach_has_a_key_that_web_uis_know(sdxl_unet):
    """All that SDXL has in its blocks."""
    keys = [file_key(path) for path in reachable_layers(sdxl_unet)]
    assert len(keys) == len(set(keys)) == 788
    assert set(keys) == sdxl_file_keys()


@pytest.mark.parametrize(
    ("include", "exclude", "count"),
    [
        ([], [], 346),
        (["*ff.net*"], [], 346 + 140),
        (["*.proj_in", "*.proj_out"], [], 346 + 22),
        (["*attn2*"], [], 346 + 280),
        (["mid_block*"], [], 346 + 40 + 20 + 2),
        (["*"], [], 788),
        ([], ["*time_emb_proj"], 346 - 17),
        (["*ff.net*"], ["*ff.net.2"], 346 + 70),
        (["*ff.net*"], ["down_blocks*", "up_blocks*"], 46 + 20),
    ],
)
def test_patterns_add_to_and_take_from_the_selection(sdxl_unet, include, exclude, count):
    assert len(choose(sdxl_unet, include=include, exclude=exclude)) == count


def test_without_patterns_the_layers_come_in_the_order_they_always_did(sdxl_unet):
    """The order in which the weights are drawn. With patterns, it is the UNet's."""
    assert list(choose(sdxl_unet)) == list(select_layers(sdxl_unet, "c3lier", "noxattn"))
    everything = list(reachable_layers(sdxl_unet))
    assert list(choose(sdxl_unet, include=["*"])) == everything


def test_patterns_may_have_a_rank_and_an_alpha(sdxl_unet):
    include = [
        "*attn2*",
        {"pattern": "*ff.net*", "rank": 8},
        {"pattern": "*attn1*", "alpha": 12},
        {"pattern": "mid_block*", "rank": 4, "alpha": 3},
    ]
    chosen = choose(sdxl_unet, include=include)

    def of(path):
        return chosen[path].rank, chosen[path].alpha

    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    assert of("down_blocks.0.resnets.0.conv1") == (96, 48)
    assert of(f"{block}.attn2.to_q") == (96, 48)
    assert of(f"{block}.ff.net.0.proj") == (8, 4)  # the network's gain
    assert of(f"{block}.attn1.to_q") == (96, 12)
    assert of("mid_block.attentions.0.transformer_blocks.0.ff.net.2") == (4, 3)  # the last pattern decides


def test_the_choice_in_words(sdxl_unet):
    network = Network(
        type="c3lier", training_method="noxattn", rank=96, alpha=48,
        include=[{"pattern": "*ff.net*", "rank": 8}, "*.proj_in"], exclude=["mid_block*"],
    )  # fmt: skip
    assert describe_choice(sdxl_unet, network) == (
        "c3lier noxattn, with 140 of *ff.net* (rank 8 alpha 4), with 11 of *.proj_in, without 67 of mid_block*"
    )


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
