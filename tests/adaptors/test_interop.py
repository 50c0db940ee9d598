"""A saved slider in diffusers' pipeline, and its keys and metadata for web UIs."""

import hashlib
import json

import pytest
import torch
from conftest import make_scale_folders, write_experiment
from networks import random_network, unet_output
from safetensors import safe_open
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import Network
from sliders.config.settings import load_settings
from sliders.formats.metadata import network_metadata
from sliders.formats.slider_file import load_slider, open_slider, save_slider, serialize, slider_tensors
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.keys import sdxl_file_keys
from sliders.models.sdxl.narrow import build_narrow_sdxl
from sliders.system.errors import InputError
from sliders.system.weight_files import open_weights
from sliders.train.plan import make_plan
from sliders.train.trainer import Trainer

MULTIPLIERS = (-1.0, 0.0, 0.67, 1.0, 2.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trainer after a few steps, and its slider file."""
    tmp_path = tmp_path_factory.mktemp("trained")
    flags = ["--iterations", "8", "--lr", "0.01"]
    flags += ["--folders", "small, base, large, huge", "--scales", "0.67, 1, 1.3, 2"]
    data = make_scale_folders(tmp_path / "data", folders=("small", "base", "large", "huge"))
    argv = write_experiment(tmp_path, flags=flags, data=data, network={"training_method": "full"})
    (settings,), _ = load_settings(argv)
    trainer = Trainer(make_plan(settings))
    return trainer, trainer.run().path


def test_diffusers_reproduces_the_trained_network(trained):
    trainer, path = trained
    pipe = build_narrow_sdxl()
    base = unet_output(pipe.unet)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="slider")
    for multiplier in MULTIPLIERS:
        trainer.network.set_multipliers(torch.tensor([multiplier]))
        ours = unet_output(trainer.model.denoiser)
        pipe.set_adapters(["slider"], [multiplier])
        assert (unet_output(pipe.unet) - ours).abs().max() < 1e-5
        if multiplier:
            assert (ours - base).abs().max() > 1e-4  # otherwise agreement would mean nothing


def test_multiplier_0_and_remove_leave_the_base_model_bit_for_bit():
    unet = build_narrow_sdxl().unet
    base, names = unet_output(unet), [name for name, _ in unet.named_modules()]
    network = random_network(unet)
    assert [name for name, _ in unet.named_modules()] == names
    network.set_multipliers(torch.zeros(1))
    assert torch.equal(unet_output(unet), base)
    network.set_multipliers(torch.ones(1))
    assert not torch.equal(unet_output(unet), base)
    network.remove()
    assert torch.equal(unet_output(unet), base)
    assert not any("forward" in module.__dict__ for module in unet.modules())


def test_each_row_has_a_multiplier_of_its_own():
    unet = build_narrow_sdxl().unet
    network = random_network(unet)
    network.set_multipliers(torch.tensor([0.67, -1.0]))
    both = unet_output(unet)
    for row, multiplier in enumerate((0.67, -1.0)):
        network.set_multipliers(torch.tensor([multiplier]))
        assert torch.allclose(unet_output(unet)[row], both[row], atol=1e-5)


def test_networks_attached_on_top_of_each_other_are_removed_in_turn():
    unet = build_narrow_sdxl().unet
    base = unet_output(unet)
    first = random_network(unet)
    with_first = unet_output(unet)
    second = random_network(unet, network_type="lierla", method="selfattn")
    assert not torch.equal(unet_output(unet), with_first)
    second.remove()
    assert torch.equal(unet_output(unet), with_first)
    first.remove()
    assert torch.equal(unet_output(unet), base)


def test_the_file_holds_only_names_that_sdxl_has(trained):
    trainer, path = trained
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
        modules = {key.split(".", 1)[0] for key in keys}
        assert len(modules) == len(trainer.network.module_paths)
        assert modules <= sdxl_file_keys()
        assert {key.split(".", 1)[1] for key in keys} == {"lora_down.weight", "lora_up.weight", "alpha"}
        for module in modules:
            down, up = (file.get_tensor(f"{module}.lora_{part}.weight") for part in ("down", "up"))
            alpha = file.get_tensor(f"{module}.alpha")
            assert alpha.shape == ()
            assert alpha.dtype == torch.float32
            assert down.shape[0] == up.shape[1]
            assert up.shape[2:] == (() if down.ndim == 2 else (1, 1))


def test_metadata_identify_sdxl_and_describe_the_training(trained):
    _, path = trained
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"].startswith("sdxl_")  # otherwise A1111 hides the file for SDXL
    assert metadata["ss_output_name"] == path.stem  # the name in <lora:…>
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    # kohya's scripts write this for every LoRA of SDXL, whatever the spelling of its keys
    assert metadata["modelspec.implementation"] == "https://github.com/Stability-AI/generative-models"
    assert metadata["ss_v2"] == "False"
    assert float(metadata["ss_training_started_at"]) > 1e9
    assert json.loads(metadata["ss_dataset_dirs"])["huge"] == {"n_repeats": 1, "img_count": 2}
    assert json.loads(metadata["ss_bucket_info"])["buckets"]["0"] == {"resolution": [64, 64], "count": 8}
    assert json.loads(metadata["sliders.folders"]) == {"small": 0.67, "base": 1.0, "large": 1.3, "huge": 2.0}
    assert json.loads(metadata["sliders.config"])["network"]["training_method"] == "full"
    assert metadata["ss_steps"] == "8"
    assert str(path.parent.parent) not in json.dumps(metadata)  # no paths of the user's disk


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {"ss_network_module": "networks.lora", "ss_network_dim": "8", "ss_network_alpha": "4.0"}),
        ({"algo": "loha"}, {"ss_network_module": "lycoris.kohya", "ss_network_dim": "8", "ss_network_alpha": "4.0",
                            "ss_network_args": {"algo": "loha", "conv_dim": "8", "conv_alpha": "4.0"}}),
        ({"algo": "lokr", "factor": 4}, {"ss_network_module": "lycoris.kohya", "ss_network_dim": "8", "ss_network_alpha": "4.0",
                                         "ss_network_args": {"algo": "lokr", "conv_dim": "8", "conv_alpha": "4.0", "factor": "4"}}),
        ({"include": ["*ff*"]}, {"ss_network_module": "networks.lora", "ss_network_dim": "8", "ss_network_alpha": "4.0"}),
        ({"include": [{"pattern": "*ff*", "rank": 2}]},
         {"ss_network_module": "networks.lora", "ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}),
    ],
)  # fmt: skip
def test_metadata_name_the_algorithm_as_the_scripts_that_train_it_do(settings, wanted):
    found = network_metadata(Network(rank=8, alpha=4, **settings))
    if "ss_network_args" in found:
        found["ss_network_args"] = json.loads(found["ss_network_args"])
    assert found == wanted


def test_layers_of_several_ranks_have_them_in_the_file(tmp_path):
    """`alpha` of each module and the rows of its weights tell a loader the gain."""
    unet = build_narrow_sdxl().unet
    include = [{"pattern": "*ff.net*", "rank": 2, "alpha": 3}, "*proj_in"]
    network = random_network(unet, method="noxattn", include=include, exclude=["mid_block*"])
    wanted = unet_output(unet)
    config = {
        "network": Network(
            type="c3lier", training_method="noxattn", rank=4, alpha=2, include=include, exclude=["mid_block*"]
        ).model_dump()
    }
    path = tmp_path / "slider.safetensors"
    tensors = slider_tensors(network, SDXL_FAMILY, torch.float32)
    save_slider(path, tensors, {"sliders.config": json.dumps(config)}, SDXL_FAMILY)
    network.remove()
    gains = {
        tensors[f"{key.partition('.')[0]}.alpha"].item() / len(t) for key, t in tensors.items() if "lora_down" in key
    }
    assert gains == {0.5, 1.5}
    assert {len(t) for key, t in tensors.items() if "_ff_net" in key and "lora_down" in key} == {2}
    assert not any("middle_block" in key for key in tensors)

    opened = open_slider(path, unet, SDXL_FAMILY)
    assert torch.allclose(unet_output(unet), wanted, atol=1e-6)
    opened.remove()
    pipe = build_narrow_sdxl()
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    assert torch.allclose(unet_output(pipe.unet), wanted, atol=1e-5)


def test_the_model_hash_is_the_sha256_of_everything_after_the_header(trained):
    _, path = trained
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["sshs_model_hash"] == hashlib.sha256(raw[start:]).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_saved_slider_can_be_loaded(tmp_path, dtype):
    unet = build_narrow_sdxl().unet
    network = random_network(unet)
    wanted = unet_output(unet)
    save_slider(tmp_path / "slider.safetensors", slider_tensors(network, SDXL_FAMILY, dtype), {}, SDXL_FAMILY)
    network.remove()
    again = AdaptorNetwork(unet, Network(type="c3lier", rank=4, alpha=1.0, training_method="full"), seed=9)
    load_slider(open_weights(tmp_path / "slider.safetensors", ""), again, SDXL_FAMILY)
    assert torch.allclose(unet_output(unet), wanted, atol={torch.float32: 1e-6}.get(dtype, 2e-2))


def test_a_slider_for_other_layers_is_refused(tmp_path):
    unet = build_narrow_sdxl().unet
    network = random_network(unet, method="selfattn")
    save_slider(tmp_path / "slider.safetensors", slider_tensors(network, SDXL_FAMILY, torch.float32), {}, SDXL_FAMILY)
    network.remove()
    with pytest.raises(InputError, match="layers differ from the network's"):
        load_slider(open_weights(tmp_path / "slider.safetensors", ""), random_network(unet), SDXL_FAMILY)


def test_a_file_with_keys_that_no_web_ui_knows_is_never_written(tmp_path):
    with pytest.raises(RuntimeError, match="not in SDXL"):
        save_slider(tmp_path / "s.safetensors", {"lora_unet__orig_mod_x.alpha": torch.ones(())}, {}, SDXL_FAMILY)
    assert list(tmp_path.iterdir()) == []


def test_the_same_content_is_the_same_bytes():
    tensors = {"b.alpha": torch.ones(()), "a.lora_up.weight": torch.arange(6.0).view(2, 3)}
    metadata = {f"key{i}": str(i) for i in range(50)}
    shuffled = dict(reversed(metadata.items()))
    assert serialize(tensors, metadata) == serialize(dict(reversed(tensors.items())), shuffled)
