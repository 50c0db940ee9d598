"""Values of a slider that cannot be right: NaN and infinity are refused by name, zeros are said to change nothing."""

import json

import pytest
import torch
from conftest import script_main
from experiments import experiment, make_trainer, settings_of
from networks import random_network
from safetensors.torch import load_file, save_file
from sliders.adaptors import ALGORITHMS
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import Network
from sliders.formats.checkpoint import checkpoints_of, newest_checkpoint, read_checkpoint, write_checkpoint
from sliders.formats.slider_file import check_slider, check_values, save_slider, slider_tensors
from sliders.formats.spelling import by_module
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.narrow import build_narrow_sdxl
from sliders.system.errors import InputError
from sliders.train.plan import make_plan

METHOD = {"type": "lierla", "training_method": "selfattn", "rank": 4, "alpha": 2.0}
KINDS = [("lora", {}), ("loha", {}), ("glora", {}), ("full", {}), ("lokr", {"rank": 2}), ("lokr", {"rank": 64})]
KIND = pytest.mark.parametrize(
    ("algo", "settings"), KINDS, ids=["lora", "loha", "glora", "full", "lokr of a rank", "lokr"]
)


@pytest.fixture(scope="module")
def unet():
    return build_narrow_sdxl().unet


def saved(path, tensors, settings):
    metadata = {"sliders.config": json.dumps({"network": settings.model_dump()}), **SDXL_FAMILY.metadata(None)}
    save_slider(path, tensors, metadata, SDXL_FAMILY)
    return path


def tensors_of(unet, settings, trained):
    network = random_network(unet, **vars_of(settings)) if trained else AdaptorNetwork(unet, settings)
    found = slider_tensors(network, SDXL_FAMILY, torch.float32)
    network.remove()
    return found


def vars_of(settings):
    return {
        "network_type": settings.type,
        "method": settings.training_method,
        "algo": settings.algo,
        "rank": settings.rank,
    }


@KIND
def test_a_slider_that_was_never_trained_changes_nothing(unet, tmp_path, algo, settings):
    """Whichever of its factors is zero. Some start with zeros in one, others in another."""
    network = Network(**{**METHOD, **settings, "algo": algo})
    path, weightless = tmp_path / "x.safetensors", SDXL_FAMILY.weightless_denoiser("tiny")

    def changes_nothing(tensors):
        return check_slider(saved(path, tensors, network), weightless, SDXL_FAMILY).changes_nothing

    trained, fresh = (tensors_of(unet, network, trained) for trained in (True, False))
    assert not changes_nothing(trained)
    assert changes_nothing(fresh)
    assert changes_nothing({key: torch.zeros_like(t) for key, t in fresh.items()})
    last = max(by_module(trained, SDXL_FAMILY))
    assert not changes_nothing({key: t if key.startswith(last) else fresh[key] for key, t in trained.items()})


@pytest.mark.parametrize(
    ("algo", "zero", "nothing"),
    [
        ("lora", {"lora_down.weight"}, True),
        ("lora", {"alpha"}, True),
        ("loha", {"hada_w1_b"}, True),
        ("glora", {"a1.weight"}, False),
        ("glora", {"b2.weight"}, False),
        ("glora", {"a1.weight", "b2.weight"}, True),
        ("glora", {"alpha"}, True),
        ("lokr", {"lokr_w1"}, True),
        ("full", {"diff"}, True),
    ],
)
def test_which_parts_are_factors(algo, zero, nothing):
    parts = {part: torch.ones(2, 2) for part in (*ALGORITHMS[algo].PARTS, "alpha")}
    if algo == "lokr":
        parts = {part: t for part, t in parts.items() if part != "lokr_w2"}
    if algo == "full":
        del parts["alpha"]
    parts |= {part: torch.zeros(2, 2) for part in zero}
    assert ALGORITHMS[algo].is_zero(parts) == nothing


def test_alpha_does_not_matter_to_a_lokr_without_rank():
    parts = {"lokr_w1": torch.ones(1), "lokr_w2": torch.ones(1), "alpha": torch.zeros(())}
    assert not ALGORITHMS["lokr"].is_zero(parts)


VALUES = pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])


@VALUES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_a_value_that_is_not_finite_is_refused_by_file_and_key(tmp_path, value, dtype):
    tensors = {"a": torch.ones(3), "b": torch.tensor([1.0, value]).to(dtype), "c": torch.ones(2, dtype=torch.int64)}
    with pytest.raises(
        InputError, match=r"^.*x\.safetensors: b contains NaN or infinite values.*: get an undamaged file.*\.$"
    ):
        check_values(tmp_path / "x.safetensors", tensors.items())
    check_values(tmp_path / "x.safetensors", ((key, t) for key, t in tensors.items() if key != "b"))


@VALUES
@pytest.mark.parametrize("flags", [["--calibrate"], []])
def test_converting_and_calibrating_refuse_it(unet, tmp_path, capsys, value, flags):
    network = Network(**METHOD)
    path = saved(tmp_path / "x.safetensors", tensors_of(unet, network, trained=True), network)
    tensors = load_file(path)
    key = min(k for k in tensors if k.endswith("down.weight"))
    tensors[key][0, 0] = value
    metadata = {"sliders.config": json.dumps({"network": network.model_dump()}), **SDXL_FAMILY.metadata(None)}
    save_file(tensors, path, metadata)
    with pytest.raises(InputError, match=key):
        check_slider(path, SDXL_FAMILY.weightless_denoiser("tiny"), SDXL_FAMILY)
    assert script_main("convert_slider")([str(path), "--model", "tiny", *flags]) == 2
    assert f"error: {path}: {key} contains NaN or infinite values" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_what_changes_nothing_cannot_be_calibrated(unet, tmp_path, capsys):
    network = Network(**METHOD)
    path = saved(tmp_path / "x.safetensors", tensors_of(unet, network, trained=False), network)
    assert script_main("convert_slider")([str(path), "--model", "tiny", "--calibrate"]) == 2
    assert "changes nothing, because all its weights are zero" in capsys.readouterr().err


def test_calibrating_with_another_model_names_the_flag(unet, tmp_path, capsys):
    network = Network(**METHOD)
    path = saved(tmp_path / "x.safetensors", tensors_of(unet, network, trained=True), network)
    assert script_main("convert_slider")([str(path), "--calibrate"]) == 2
    assert "give the model it was trained on as --model" in capsys.readouterr().err
    assert script_main("convert_slider")([str(path), "--calibrate", "--model", str(tmp_path / "no.safetensors")]) == 2
    assert "error: --model: " in capsys.readouterr().err


@pytest.mark.parametrize("place", ["master", "optimizer"])
def test_a_run_is_not_resumed_from_nan(tmp_path, train_main, place):
    argv = experiment(tmp_path / "run", iterations=2, per_steps=1)
    assert train_main(argv) == 0
    path = newest_checkpoint(settings_of(argv))[0].path
    checkpoint = read_checkpoint(path)
    tensors = checkpoint.tensors()
    bad = tensors["master"] if place == "master" else tensors["optimizer"]["state"][0]["exp_avg"]
    bad.flatten()[0] = float("nan")
    write_checkpoint(path, {k: v for k, v in checkpoint.header.items() if k != "version"}, tensors)
    with pytest.raises(
        InputError, match=rf"^--resume: .*{path.name} contains NaN or infinite values in {place}.*remove it"
    ):
        make_plan(settings_of([*argv, "--resume"]))
    path.unlink()
    assert make_plan(settings_of([*argv, "--resume"])).checkpoint.path in checkpoints_of(settings_of(argv)).values()


def test_what_a_files_precision_cannot_hold_is_not_saved(tmp_path):
    trainer = make_trainer(tmp_path, save={"precision": "float16"})
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(1e6)
    with pytest.raises(InputError, match=r"contains NaN or infinite values in save.precision float16.*--resume"):
        trainer.outputs.save("last", 1, trainer.learner.tensors(), trainer.network)
    assert not trainer.outputs.path("last").exists()
