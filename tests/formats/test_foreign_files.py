"""Files as other programs write them, against the converted file: the difference of each layer's weight, in float64."""

import json
import math
import re

import pytest
import torch
from conftest import script_main
from networks import random_network, unet_output
from other_programs import (
    ATTENTION,
    FILES,
    drawn,
    kohya,
    leco,
    lora_delta,
    of_diffusers,
    of_lycoris,
    of_several_ranks,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sliders.config.schema import Network
from sliders.formats.slider_file import open_slider, save_slider, slider_tensors
from sliders.models.layers import choose_layers, reachable_layers
from sliders.models.sd.family import SD1_FAMILY
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.keys import file_key
from sliders.models.sdxl.narrow import build_narrow_sdxl
from torch import nn


@pytest.fixture(scope="session")
def convert_main():
    return script_main("convert_slider")


@pytest.fixture(scope="module")
def unet():
    return build_narrow_sdxl().unet


def dense(parts):
    """ΔW of a converted layer at multiplier 1, flat: [out, in · kh · kw]."""
    alpha = parts["alpha"].item() if "alpha" in parts else None
    found = {part: tensor.double() for part, tensor in parts.items()}
    if "diff" in found:
        return found["diff"].flatten(1)
    if "lora_up.weight" in found:
        down = found["lora_down.weight"]
        return lora_delta(down, found["lora_up.weight"], alpha / len(down)).flatten(1)
    if "hada_w1_a" in found:
        first, second = (found[f"hada_w{i}_a"] @ found[f"hada_w{i}_b"] for i in (1, 2))
        return first * second * (alpha / len(parts["hada_w1_b"]))
    w1, gain = found["lokr_w1"], 1.0
    if "lokr_w2" in found:
        w2 = found["lokr_w2"]
    else:
        w2, gain = found["lokr_w2_a"] @ found["lokr_w2_b"], alpha / len(found["lokr_w2_b"])
    return gain * torch.kron(w1, w2.flatten(1)) if w2.ndim == 2 else gain * kron4(w1, w2).flatten(1)


def kron4(w1, w2):
    return torch.kron(w1[:, :, None, None], w2)


def converted(path, unet):
    """{module path: parts} of a slider file for the narrow SDXL."""
    paths = {file_key(name): name for name in reachable_layers(unet)}
    modules = {}
    for key, tensor in load_file(path).items():
        module, _, part = key.partition(".")
        modules.setdefault(paths[module], {})[part] = tensor
    return modules


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_each_layer_of_a_converted_file_is_that_of_the_original(convert_main, unet, tmp_path, capsys, make):
    name, deltas, notes = make(unet, tmp_path)
    out = tmp_path / "out.safetensors"
    assert convert_main([str(tmp_path / name), "--model", "tiny", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert [note for note in notes if note not in said] == []
    assert len(re.findall("^note: ", said, re.MULTILINE)) == len(notes), said
    modules = converted(out, unet)
    assert modules.keys() == deltas.keys()
    for path, delta in deltas.items():
        wanted = delta.double().flatten(1)
        assert (dense(modules[path]) - wanted).norm() < 2e-6 * wanted.norm(), path


@pytest.mark.parametrize("make", [leco, of_several_ranks, of_diffusers, of_lycoris("loha")])
def test_a_converted_file_states_what_it_adapts_and_is_sampled_like_it(convert_main, tmp_path, make):
    unet = build_narrow_sdxl().unet
    name, deltas, _ = make(unet, tmp_path)
    out = tmp_path / "out.safetensors"
    assert convert_main([str(tmp_path / name), "--model", "tiny", "--out", str(out)]) == 0
    with safe_open(out, framework="pt") as file:
        settings = Network.model_validate(json.loads(file.metadata()["sliders.config"])["network"])
    assert choose_layers(unet, settings).keys() == deltas.keys()
    assert len(settings.include) <= 60
    network = open_slider(out, unet, SDXL_FAMILY)
    network.set_multipliers(torch.tensor([0.01]))
    found = unet_output(unet)
    network.remove()
    base = unet_output(unet)
    with torch.no_grad():
        for path, delta in deltas.items():
            weight = unet.get_submodule(path).weight
            weight += 0.01 * delta.view(weight.shape).float()
    wanted = unet_output(unet)
    assert (wanted - base).abs().max() > 1e-3
    assert torch.allclose(found, wanted, atol=1e-3 * (wanted - base).abs().max().item() + 1e-5)


INCLUDED = {
    "include": [{"pattern": "*ff.net*", "rank": 2, "alpha": 3}, "*proj_in", "*.to_k"], "exclude": ["mid_block*"],
}  # fmt: skip


@pytest.mark.parametrize("algo", ["lora", "loha", "lokr", "glora", "full"])
@pytest.mark.parametrize("reverse", [False, True])
def test_our_own_sliders_with_patterns_keep_their_settings_and_what_is_known(convert_main, tmp_path, algo, reverse):
    unet = build_narrow_sdxl().unet
    network = random_network(unet, "lierla", "selfattn", algo=algo, **INCLUDED)
    network.set_multipliers(torch.tensor([0.7]))
    wanted = unet_output(unet)
    network.remove()
    settings = Network(type="lierla", rank=4, alpha=2.0, training_method="selfattn", algo=algo, **INCLUDED)
    metadata = {"sliders.config": json.dumps({"network": settings.model_dump(), "train": {"lr": 1}}),
                "sliders.folders": '{"a": 1}', "sliders.card": "{}", **SDXL_FAMILY.metadata(None)}  # fmt: skip
    source, out = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    save_slider(source, slider_tensors(network, SDXL_FAMILY, torch.float32), metadata, SDXL_FAMILY)
    flags = ["--reverse"] if reverse else []
    assert convert_main([str(source), "--model", "tiny", "--out", str(out), *flags]) == 0
    again = open_slider(out, unet, SDXL_FAMILY)
    again.set_multipliers(torch.tensor([-0.7 if reverse else 0.7]))
    assert torch.allclose(unet_output(unet), wanted, atol=1e-5)
    again.remove()
    with safe_open(out, framework="pt") as file:
        found = file.metadata()
    assert json.loads(found["sliders.config"]) == json.loads(metadata["sliders.config"])
    assert found["sliders.folders"] == '{"a": 1}'
    assert ("sliders.card" in found) is not reverse  # its numbers are of the other direction

    foreign = tmp_path / "foreign.safetensors"  # without our metadata, the settings are found from the layers
    save_file(load_file(source), foreign)
    assert convert_main([str(foreign), "--model", "tiny", "--out", str(out), "--overwrite"]) == 0
    again = open_slider(out, unet, SDXL_FAMILY)
    again.set_multipliers(torch.tensor([0.7]))
    assert torch.allclose(unet_output(unet), wanted, atol=1e-5)
    again.remove()


def sd_slider(folder, method, metadata, **names):
    """A slider of the narrow Stable Diffusion 1, in diffusers' names."""
    from sliders.models.sd.narrow import NarrowSD, build_unet

    network = random_network(build_unet(NarrowSD(), names.pop("v2", False)), "c3lier", method, **names)
    path = folder / "sd.safetensors"
    save_file(
        {
            f"{SD1_FAMILY.file_key(name)}.{part}": t.contiguous()
            for name, parts in network.tensors().items()
            for part, t in parts.items()
        },
        path,
        metadata,
    )
    return str(path)


@pytest.mark.parametrize(
    ("v2", "family", "method", "metadata", "said"),
    [
        (False, "sd1", "noxattn", None, ["note: its layers fit Stable Diffusion 2 as well", "--family could not be checked"]),
        (True, "sd1", "noxattn", None, ["note: its layers fit Stable Diffusion 2 as well", "--family could not be checked"]),
        (False, "sd1", "noxattn", {"ss_base_model_version": "sd_v1"}, []),
        (True, "sd2", "noxattn", {"ss_base_model_version": "sd_v2_v"}, []),
        (True, "sd1", "noxattn", {"ss_base_model_version": "sd_v2_v"}, ["error", "Stable Diffusion 2, not", "--family sd2"]),
        (False, "sd2", "noxattn", {"ss_base_model_version": "sd_v1"}, ["error", "Stable Diffusion 1, not", "--family sd1"]),
        (False, "sdxl", "noxattn", None, ["error", "--family"]),
    ],
)  # fmt: skip
def test_a_family_that_the_layers_do_not_show_is_said_to_be_unchecked(
    convert_main, tmp_path, capsys, v2, family, method, metadata, said
):
    path = sd_slider(tmp_path, method, metadata, v2=v2)
    status = convert_main([path, "--model", "tiny", "--family", family])
    out, error = capsys.readouterr()
    assert status == (2 if "error" in said else 0)
    assert [word for word in said if word not in out + error] == []
    assert ("note" in out) == any("note" in word for word in said)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_files_of_other_precisions_are_converted(convert_main, unet, tmp_path, dtype):
    drawings = drawn(unet, ATTENTION, 4)
    tensors = {}
    for name, (down, up) in drawings.items():
        tensors |= {f"{kohya(name)}.lora_down.weight": down.to(dtype), f"{kohya(name)}.lora_up.weight": up.to(dtype),
                    f"{kohya(name)}.alpha": torch.tensor(2.0).to(dtype)}  # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors")
    assert convert_main([str(tmp_path / "a.safetensors"), "--model", "tiny"]) == 0
    modules = converted(tmp_path / "a_converted.safetensors", unet)
    for name, (down, up) in drawings.items():
        wanted = lora_delta(down.to(dtype), up.to(dtype), 2 / len(down)).flatten(1)
        assert (dense(modules[name]) - wanted).norm() < 2e-7 * wanted.norm() * math.sqrt(nn.Flatten()(wanted).shape[1])
        assert modules[name]["alpha"].dtype == torch.float32
