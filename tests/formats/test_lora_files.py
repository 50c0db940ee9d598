"""LoRAs of other programs beside a slider, per row: the UNet's output against diffusers' or against densely merged weights."""

import copy
import hashlib
import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from experiments import sample_argv
from networks import random_inputs, random_network
from other_programs import (
    FILES,
    READ_ONLY,
    leco,
    of_ai_toolkit,
    of_diffusers_without_text,
    of_kohya,
    of_lycoris,
    of_peft,
    of_several_ranks,
    with_text_encoders,
)
from safetensors.torch import load_file, save_file
from sliders.fast.path import FastPath
from sliders.formats.lora_files import read_lora
from sliders.formats.slider_file import save_slider, slider_tensors
from sliders.models.sd.family import SD1_FAMILY
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.keys import file_key
from sliders.models.sdxl.narrow import build_narrow_sdxl
from sliders.sample.compare import compare
from sliders.sample.plan import make_plan
from sliders.sample.settings import load_comparison_settings, load_sample_settings
from sliders.sample.studio import Studio
from sliders.system.errors import InputError

WEIGHTLESS = SDXL_FAMILY.weightless_denoiser("tiny")
ROWS = ((0.02, 0.7), (-0.01, -1.3))  # multipliers of the file, whose weights are large, and of the slider
SETTINGS = {"type": "c3lier", "training_method": "noxattn", "rank": 4, "alpha": 2.0}


@pytest.fixture(scope="module")
def unet():
    return build_narrow_sdxl().unet


@pytest.fixture(scope="module")
def slider(unet, tmp_path_factory):
    path = tmp_path_factory.mktemp("slider") / "slider.safetensors"
    network = random_network(unet, method="noxattn")
    metadata = {"sliders.config": json.dumps({"network": SETTINGS})}
    save_slider(path, slider_tensors(network, SDXL_FAMILY, torch.float32), metadata, SDXL_FAMILY)
    network.remove()
    return path


@pytest.fixture(scope="module")
def slider_file(slider):
    return read_lora(slider, WEIGHTLESS, SDXL_FAMILY)


@torch.no_grad()
def merged(unet, deltas, multiplier):
    """A copy of the UNet with the differences in its weights."""
    found = copy.deepcopy(unet)
    for path, delta in deltas.items():
        weight = found.get_submodule(path).weight
        weight += (multiplier * delta.double().view(weight.shape)).float()
    return found


@torch.no_grad()
def output(unet, rows=slice(None)):
    """For some of two rows of inputs."""
    inputs = random_inputs(2)
    inputs |= {"added_cond_kwargs": {key: value[rows] for key, value in inputs["added_cond_kwargs"].items()}}
    return unet(**{key: value if isinstance(value, dict) else value[rows] for key, value in inputs.items()}).sample


def largest_difference(found, wanted):
    return (found - wanted).abs().max().item()


@contextmanager
def attached(unet, *files):
    """(file, its multipliers) on a UNet."""
    networks = [file.attach(unet) for file, _ in files]
    for network, (_, multipliers) in zip(networks, files, strict=True):
        network.set_multipliers(torch.tensor(multipliers))
    yield networks
    for network in reversed(networks):
        network.remove()


@pytest.mark.parametrize("make", [*FILES.values(), *READ_ONLY.values()], ids=[*FILES, *READ_ONLY])
def test_beside_a_slider_each_row_is_that_of_merged_weights(unet, slider_file, tmp_path, make):
    name, deltas, _ = make(unet, tmp_path)
    others, own = zip(*ROWS, strict=True)
    with attached(unet, (slider_file, own), (read_lora(tmp_path / name, WEIGHTLESS, SDXL_FAMILY), others)):
        found = output(unet)
    base = output(unet)
    for number, (multiplier, slider_multiplier) in enumerate(ROWS):
        other = merged(unet, deltas, multiplier)
        with attached(other, (slider_file, [slider_multiplier])):
            wanted = output(other, slice(number, number + 1))
        assert largest_difference(found[number], wanted[0]) < 1e-4
        assert largest_difference(wanted[0], base[number]) > 1e-3


@pytest.mark.parametrize("make", [of_several_ranks, of_lycoris("loha"), READ_ONLY["several algorithms"]])
def test_the_fast_path_computes_the_same(unet, slider_file, tmp_path, make):
    name, _, _ = make(unet, tmp_path)
    others, own = zip(*ROWS, strict=True)
    with attached(unet, (slider_file, own), (read_lora(tmp_path / name, WEIGHTLESS, SDXL_FAMILY), others)) as networks:
        wanted = output(unet)
        with FastPath(unet, networks):
            assert largest_difference(output(unet), wanted) < 1e-5


@pytest.mark.parametrize("make", [of_kohya, of_ai_toolkit, of_diffusers_without_text])
def test_sampled_pictures_are_those_of_diffusers_with_the_same_files(unet, slider, tmp_path, make):
    """Through the sample command's own plan, with a multiplier of the slider for each picture."""
    name, _, _ = make(unet, tmp_path)
    shutil.copy(tmp_path / name, tmp_path / "other.safetensors")
    prompt = "a disc {<slider:-1>|<slider:0.7>} <lora:other:0.01>"
    argv = sample_argv(slider, tmp_path / "o", "--lora_dir", str(tmp_path), "--guidance", "3")
    argv[argv.index("--prompt") + 1] = prompt
    settings = load_sample_settings(argv, "sdxl")
    plan = make_plan(settings)
    ((group, pictures),) = Studio(settings, [plan]).pictures(plan)
    assert group.multipliers == (-1.0, 0.0, 0.7)
    pipe = build_narrow_sdxl()
    how = {"num_inference_steps": 3, "guidance_scale": 3.0, "width": 64, "height": 64, "output_type": "np"}

    def picture():
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        return torch.tensor(pipe("a disc", latents=noise, **how).images[0]).permute(2, 0, 1)

    base = picture()
    pipe.load_lora_weights(str(slider.parent), weight_name=slider.name, adapter_name="slider")
    pipe.load_lora_weights(str(tmp_path), weight_name="other.safetensors", adapter_name="other")
    for multiplier, found in zip(group.multipliers, pictures[0], strict=True):
        pipe.set_adapters(["slider", "other"], [multiplier, 0.01])
        wanted = picture()
        assert largest_difference(found, wanted) < 1e-4
        assert largest_difference(wanted, base) > 1e-2


def test_sliders_and_loras_are_compared_on_one_page(unet, slider, tmp_path):
    name, _, _ = of_kohya(unet, tmp_path)
    words = [str(slider), str(tmp_path / name), "--model", "tiny", "--prompt", "a disc", "--multipliers", "0.01"]
    settings = load_comparison_settings(
        [
            *words,
            "--device",
            "cpu",
            "--width",
            "64",
            "--height",
            "64",
            "--seeds",
            "1",
            "--steps",
            "1",
            "--out",
            str(tmp_path / "o"),
        ]
    )
    page = compare(settings).read_text(encoding="utf-8")
    assert "slider, seed 1" in page and f"{Path(name).stem}, seed 1" in page
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"slider", Path(name).stem, "index.html"}


def spoilt(make, change):
    """A file with tensors changed. change: tensors → None."""

    def made(unet, folder):
        name, _, _ = make(unet, folder)
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / "bad.safetensors")

    return made


def add(key, *shape):
    return lambda tensors: tensors.update({key: torch.ones(shape)})


FIRST = file_key("mid_block.resnets.0.conv1")
BAD = {
    "a DoRA": (spoilt(of_kohya, add(f"{FIRST}.dora_scale", 64, 1, 1, 1)), ["is a DoRA", "dora_scale", "merge it into a model"]),
    "PEFT's DoRA": (spoilt(of_peft, add("base_model.model.mid_block.resnets.0.conv1.lora_magnitude_vector", 64)), ["is a DoRA"]),
    "an OFT": (lambda _, folder: save_file({f"{FIRST}.oft_blocks": torch.ones(4, 2, 2)}, folder / "bad.safetensors"), ["is an OFT"]),
    "trained norms": (spoilt(of_kohya, add("lora_unet_mid_block_resnets_0_norm1.w_norm", 64)), ["trained norms", "w_norm"]),
    "trained biases": (spoilt(of_kohya, add(f"{FIRST}.diff_b", 64)), ["trained biases", "diff_b"]),
    "unknown keys": (spoilt(of_kohya, add("lora_unet_nowhere.alpha")), ["1 of", "lora_unet_nowhere", "choose a LoRA for SDXL"]),
    "half a layer": (spoilt(of_kohya, lambda t: t.pop(f"{FIRST}.lora_up.weight")), ["only a part", "complete file"]),
    "half a layer with Tucker": (spoilt(of_lycoris("locon", use_tucker=True), lambda t: t.pop(
        next(k for k in t if k.endswith("lora_mid.weight")).replace("mid", "down"))), ["only a part"]),
    "another size": (spoilt(of_kohya, lambda t: t.update({f"{FIRST}.lora_up.weight": torch.ones(8, 4, 1, 1)})), ["another size", "SDXL"]),
    "parts of other sizes": (spoilt(of_lycoris("loha", use_tucker=True), lambda t: t.update(
        {next(k for k in t if k.endswith("hada_t1")): torch.ones(9, 9, 3, 3)})), ["do not fit each other"]),
    "NaN": (spoilt(of_kohya, lambda t: t[f"{FIRST}.lora_up.weight"].fill_(torch.nan)), ["contains NaN"]),
    "only text encoders": (lambda _, folder: save_file(
        {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(4, 4)}, folder / "bad.safetensors"),
        ["all its 1 keys are for text encoders"]),
}  # fmt: skip


@pytest.mark.parametrize(("make", "said"), BAD.values(), ids=BAD)
def test_what_cannot_be_read_is_refused_by_name_in_one_sentence(unet, tmp_path, make, said):
    make(unet, tmp_path)
    with pytest.raises(InputError) as refused:
        read_lora(tmp_path / "bad.safetensors", WEIGHTLESS, SDXL_FAMILY)
    message = str(refused.value)
    assert message.startswith(str(tmp_path / "bad.safetensors"))
    assert len(message.splitlines()) == 1
    assert [words for words in said if words not in message] == []


def test_notes_say_what_is_left_out_or_assumed(unet, tmp_path):
    name, _, _ = with_text_encoders(unet, tmp_path)
    (note,) = read_lora(tmp_path / name, WEIGHTLESS, SDXL_FAMILY).notes
    assert "12 keys are for text encoders and are left out" in note
    make = spoilt(of_kohya, lambda t: [t.pop(key) for key in list(t) if key.endswith("alpha")])
    make(unet, tmp_path)
    file = read_lora(tmp_path / "bad.safetensors", WEIGHTLESS, SDXL_FAMILY)
    assert "layers lack their alpha, so it is the rank" in file.notes[0]
    assert {float(parts["alpha"]) for parts in file.modules.values()} == {4.0}


def test_metadata_that_state_another_version_decide(tmp_path):
    """Without cross-attention, Stable Diffusion 1 and 2 have the same layers."""
    weightless = SD1_FAMILY.weightless_denoiser("tiny")
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    width = weightless.get_submodule(name).in_features
    key = f"lora_unet_{name.replace('.', '_')}"
    tensors = {f"{key}.lora_down.weight": torch.ones(2, width), f"{key}.lora_up.weight": torch.ones(width, 2)}
    for version, refused in (("sd_v1", False), ("sd_v2", True)):
        save_file(tensors, tmp_path / "a.safetensors", {"ss_base_model_version": version})
        if refused:
            with pytest.raises(InputError, match="is for Stable Diffusion 2, not Stable Diffusion 1"):
                read_lora(tmp_path / "a.safetensors", weightless, SD1_FAMILY)
        else:
            assert read_lora(tmp_path / "a.safetensors", weightless, SD1_FAMILY).modules.keys() == {name}


def test_a_pickle_is_read_too_and_known_by_its_bytes(unet, tmp_path):
    name, deltas, _ = leco(unet, tmp_path)
    file = read_lora(tmp_path / name, WEIGHTLESS, SDXL_FAMILY)
    assert file.modules.keys() == deltas.keys()
    assert file.model_hash == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
