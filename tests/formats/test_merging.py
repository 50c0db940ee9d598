"""merge_sliders.py: the sum of several files at multipliers, against all of them attached at once and against dense sums."""

import json

import numpy as np
import pytest
import torch
from conftest import script_main
from networks import random_network, unet_output
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sliders.formats.lora_files import read_lora
from sliders.formats.merging import merge
from sliders.formats.slider_file import check_slider, save_slider, slider_tensors
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.keys import file_key, sdxl_file_keys
from sliders.models.sdxl.narrow import build_narrow_sdxl

SLIDERS = {  # differ in layers, ranks, alphas and weights
    "a": {"method": "noxattn", "rank": 4, "alpha": 2.0},
    "b": {"method": "full", "rank": 3, "alpha": 1.0, "include": [{"pattern": "*ff.net*", "rank": 2, "alpha": 5}]},
    "wide": {"method": "noxattn", "rank": 24, "alpha": 3.0},
    "loha": {"method": "selfattn", "algo": "loha", "rank": 2, "alpha": 1.0},
    "lokr": {"method": "noxattn", "algo": "lokr", "factor": 4, "rank": 2, "alpha": 1.0},
    "glora": {"method": "selfattn", "algo": "glora"},
}


@pytest.fixture(scope="module")
def unet():
    return build_narrow_sdxl().unet


@pytest.fixture(scope="module")
def weightless():
    return SDXL_FAMILY.weightless_denoiser("tiny")


@pytest.fixture(scope="module")
def files(unet, tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("sliders"), {}
    for seed, (name, settings) in enumerate(SLIDERS.items()):
        network = random_network(unet, **settings)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            for parameter in network.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        own = {"type": "c3lier", "rank": 4, "alpha": 2.0, "training_method": settings["method"], **settings}
        config = {"network": {key: value for key, value in own.items() if key != "method"}}
        tensors = slider_tensors(network, SDXL_FAMILY, torch.float32)
        found[name] = folder / f"{name}.safetensors"
        save_slider(found[name], tensors, {"sliders.config": json.dumps(config)}, SDXL_FAMILY)
        network.remove()
    return found


@pytest.fixture(scope="session")
def merge_main():
    return script_main("merge_sliders")


def output_with(unet, weightless, terms):
    """Of the UNet with (file, multiplier) all attached at once."""
    networks = [read_lora(path, weightless, SDXL_FAMILY).attach(unet) for path, _ in terms]
    for network, (_, multiplier) in zip(networks, terms, strict=True):
        network.set_multipliers(torch.tensor([multiplier]))
    found = unet_output(unet)
    for network in reversed(networks):
        network.remove()
    return found


def dense_sum(unet, weightless, terms):
    """{layer: ΔW as a matrix, float64}, from what each file's adaptors add to unit vectors."""
    total = {}
    for path, multiplier in terms:
        for name, adaptor in read_lora(path, weightless, SDXL_FAMILY).adaptors(unet):
            delta = multiplier * adaptor.difference().detach().double().flatten(1)
            total[name] = total.get(name, 0) + delta
    return total


@pytest.mark.parametrize("names", [("a", "b"), ("wide", "wide"), ("a", "b", "wide")], ids="+".join)
def test_the_merged_file_does_what_all_do_at_once(unet, weightless, files, tmp_path, names):
    """Twice 24 ranks are more than the narrow convolutions' 32 channels, to which a slider's rank is limited."""
    terms = [(files[name], multiplier) for name, multiplier in zip(names, (0.7, -1.3, 0.5), strict=False)]
    out = tmp_path / "c.safetensors"
    done = merge(terms, out, "tiny", SDXL_FAMILY)
    assert (done.error, done.worst) == (0, 0)
    wanted, base = output_with(unet, weightless, terms), unet_output(unet)
    for multiplier in (1.0, -0.5):
        every = [(path, m * multiplier) for path, m in terms]
        found = output_with(unet, weightless, [(out, multiplier)])
        assert (found - output_with(unet, weightless, every)).abs().max() < 1e-5
    assert (wanted - base).abs().max() > 1e-2
    pipe = build_narrow_sdxl()
    pipe.load_lora_weights(str(out.parent), weight_name=out.name)
    assert (unet_output(pipe.unet) - wanted).abs().max() < 1e-5


def test_layers_of_one_file_only_keep_their_rank_and_settings_are_found_where_there_are_any(
    weightless, files, tmp_path
):
    done = merge([(files["a"], 1.0), (files["b"], 1.0)], tmp_path / "c.safetensors", "tiny", SDXL_FAMILY)
    assert done.ranks == (2, 3, 7)
    found = check_slider(tmp_path / "c.safetensors", weightless, SDXL_FAMILY)
    assert found.modules.keys() <= sdxl_file_keys()
    merge([(files["wide"], 1.0), (files["wide"], 1.0)], tmp_path / "d.safetensors", "tiny", SDXL_FAMILY)
    with safe_open(tmp_path / "d.safetensors", framework="pt") as file:
        assert "sliders.config" not in file.metadata()


def test_half_precision_is_kept_where_no_product_is_rounded(unet, files, tmp_path):
    half = {k: t if k.endswith("alpha") else t.half() for k, t in load_file(files["a"]).items()}
    save_file(half, tmp_path / "half.safetensors")
    for multiplier, dtype in ((-2.0, torch.float16), (0.7, torch.float32)):
        merge([(tmp_path / "half.safetensors", multiplier)] * 2, tmp_path / "c.safetensors", "tiny", SDXL_FAMILY)
        tensors = load_file(tmp_path / "c.safetensors")
        key = file_key("mid_block.resnets.0.conv1")
        assert tensors[f"{key}.lora_down.weight"].dtype is torch.float16
        up = tensors[f"{key}.lora_up.weight"]
        assert up.dtype is dtype
        factor = multiplier * 2 / 4
        assert torch.equal(up[:, :4].float(), half[f"{key}.lora_up.weight"].float() * factor)


def test_metadata_say_what_loaders_expect_and_what_was_merged(files, tmp_path):
    out = tmp_path / "both.safetensors"
    merge([(files["a"], 0.7), (files["b"], -1.3)], out, "tiny", SDXL_FAMILY)
    with safe_open(out, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"].startswith("sdxl_")
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_network_dim"] == "Dynamic"
    assert metadata["ss_output_name"] == metadata["modelspec.title"] == "both"
    assert len(metadata["sshs_model_hash"]) == 64
    merged = json.loads(metadata["sliders.merged_from"])
    assert [(one["name"], one["multiplier"]) for one in merged] == [("a", 0.7), ("b", -1.3)]
    with safe_open(files["a"], framework="pt") as file:
        assert merged[0]["hash"] == file.metadata()["sshs_model_hash"]


@pytest.mark.parametrize("names", [("a", "b"), ("a", "loha", "lokr")], ids="+".join)
def test_a_lower_rank_is_the_best_there_is_and_its_error_is_stated(unet, weightless, files, tmp_path, names):
    """Against the singular values of dense sums, in float64 by NumPy."""
    terms = [(files[name], multiplier) for name, multiplier in zip(names, (0.7, -1.3, 0.5), strict=False)]
    out = tmp_path / "c.safetensors"
    done = merge(terms, out, "tiny", SDXL_FAMILY, rank=3)
    total, found = dense_sum(unet, weightless, terms), dense_sum(unet, weightless, [(out, 1.0)])
    assert found.keys() == total.keys()
    lost, errors = 0.0, {}
    for name, delta in total.items():
        sizes = np.linalg.svd(delta.numpy(), compute_uv=False)
        best = (sizes[3:] ** 2).sum()
        missing = ((delta - found[name]) ** 2).sum().item()
        assert missing == pytest.approx(best, rel=1e-3, abs=1e-9)
        lost, errors[name] = lost + best, (best / (sizes**2).sum()) ** 0.5
    whole = sum((delta**2).sum().item() for delta in total.values())
    assert done.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert done.worst == pytest.approx(max(errors.values()), rel=1e-4)
    assert errors[done.layer] == pytest.approx(done.worst, rel=1e-4)
    assert done.error > 0.01


def test_at_the_rank_of_the_sum_nothing_is_lost(unet, weightless, files, tmp_path):
    terms = [(files["a"], 0.7), (files["b"], -1.3)]
    done = merge(terms, tmp_path / "c.safetensors", "tiny", SDXL_FAMILY, rank=7)
    assert done.worst < 1e-5
    found = output_with(unet, weightless, [(tmp_path / "c.safetensors", 1.0)])
    assert (found - output_with(unet, weightless, terms)).abs().max() < 1e-5


def test_the_command_writes_and_says_the_error(merge_main, files, tmp_path, capsys):
    flags = ["--model", "tiny", "--multipliers", "1,", "-0.5", "--out", str(tmp_path / "c.safetensors")]
    assert merge_main([str(files["a"]), str(files["b"]), *flags]) == 0
    assert "error   none: the ranks are concatenated" in capsys.readouterr().out
    assert merge_main([str(files["a"]), str(files["loha"]), *flags, "--overwrite", "--rank", "4"]) == 0
    assert "% of the sum" in capsys.readouterr().out
    with safe_open(tmp_path / "c.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["sliders.merged_from"])[1]["multiplier"] == -0.5


BAD = {
    "a LoHa without --rank": (["a", "loha"], [], ["loha.safetensors", "--rank N"]),
    "a GLoRA": (["a", "glora"], ["--rank", "4"], ["glora.safetensors", "cannot be merged", "beside"]),
    "too few multipliers": (["a", "b"], ["--multipliers", "1"], ["--multipliers", "1 numbers for 2 files"]),
    "multiplier 0": (["a", "b"], ["--multipliers", "1, 0"], ["--multipliers", "leave that file out"]),
    "rank 0": (["a", "b"], ["--rank", "0"], ["--rank: 0", "from 1 to"]),
    "another ending": (["a"], ["--out", "c.pt"], ["--out", "must end in .safetensors"]),
    "another model's sizes": (["a"], ["--model", "stabilityai/stable-diffusion-xl-base-1.0"], ["a.safetensors", "give the model"]),
    "another family": (["a", "b"], ["--family", "sd1"], ["a.safetensors", "a LoRA for Stable Diffusion 1"]),
}  # fmt: skip


@pytest.mark.parametrize(("names", "flags", "said"), BAD.values(), ids=BAD)
def test_what_cannot_be_merged_is_refused_in_one_sentence(merge_main, files, tmp_path, capsys, names, flags, said):
    out = [] if "--out" in flags else ["--out", str(tmp_path / "c.safetensors")]
    model = [] if "--model" in flags else ["--model", "tiny"]
    assert merge_main([*(str(files[name]) for name in names), *model, *out, *flags]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    assert [word for word in said if word not in error] == [], error
    assert list(tmp_path.iterdir()) == []
