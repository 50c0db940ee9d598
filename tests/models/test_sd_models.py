"""Loads Stable Diffusion 1 and 2 from every kind of source, and refuses other models before any weights are read."""

import json
import shutil

import pytest
import torch
from conftest import script_main, write_experiment
from narrow_files import save_single_file
from safetensors.torch import load_file, save_file
from sliders.compute.device import place
from sliders.config import families
from sliders.config.schema import PretrainedModel
from sliders.models import FAMILIES, find_family
from sliders.models.sd.family import SD1_FAMILY
from sliders.models.sd.narrow import build_narrow_sd
from sliders.models.sdxl.narrow import NarrowSDXL, build_narrow_sdxl
from sliders.system.errors import InputError

VERSIONS = {"sd1": False, "sd2": True}


@pytest.fixture(scope="module")
def pipes():
    return {name: build_narrow_sd(v2=v2, seed=4) for name, v2 in VERSIONS.items()}


@pytest.fixture(scope="module")
def folders(pipes, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, pipe in pipes.items():
        pipe.save_pretrained(root / name)
    build_narrow_sdxl(NarrowSDXL(text_hidden_sizes=(32, 64), text_projection_dim=64)).save_pretrained(root / "sdxl")
    return {name: root / name for name in (*pipes, "sdxl")}


@pytest.fixture(scope="module")
def files(pipes, tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    sdxl = build_narrow_sdxl(NarrowSDXL(text_hidden_sizes=(32, 64), text_projection_dim=64))
    return {
        name: save_single_file(pipe, root / f"{name}.safetensors") for name, pipe in {**pipes, "sdxl": sdxl}.items()
    }


def test_every_family_that_commands_know_has_models():
    """In each version, and with its facts."""
    assert FAMILIES.keys() == families.FAMILIES.keys()
    for name, versions in families.FAMILIES.items():
        for facts in versions:
            settings = PretrainedModel(name_or_path="tiny", v2=facts is families.SD2)
            assert find_family(name, settings).facts is facts


def load_sd(settings, dtype):
    return find_family("sd", settings).load(settings, dtype)


def load(name_or_path, **settings):
    return load_sd(PretrainedModel(name_or_path=str(name_or_path), **settings), torch.float32)


def assert_same_weights(model, pipe):
    for part in ("unet", "vae", "text_encoder"):
        found, wanted = getattr(model.pipe, part).state_dict(), getattr(pipe, part).state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[k], wanted[k]) for k in wanted), part


def assert_same_model(model, pipe):
    assert_same_weights(model, pipe)
    prompts = ["", "a red circle"]
    found = model.encode_prompts(prompts, "cpu")
    for prompt in prompts:
        assert torch.allclose(found[prompt].tokens, pipe.encode_prompt(prompt, "cpu", 1, False)[0][0], atol=1e-6)


@pytest.mark.parametrize("name", VERSIONS)
def test_a_diffusers_folder(pipes, folders, name):
    model = load(folders[name], v2=VERSIONS[name])
    assert_same_model(model, pipes[name])
    assert model.objective.prediction_type == ("v_prediction" if VERSIONS[name] else "epsilon")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("name", VERSIONS)
def test_a_single_file(pipes, folders, tmp_path, name, suffix):
    path = save_single_file(pipes[name], tmp_path / f"model{suffix}")
    assert_same_model(load(path, v2=VERSIONS[name], config=str(folders[name])), pipes[name])


def test_a_hub_model_from_the_cache(pipes, tmp_path, monkeypatch):
    """In the hub's cache layout, so that the real loading code runs offline."""
    repository = tmp_path / "models--someone--narrow"
    pipes["sd1"].save_pretrained(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.HF_HUB_CACHE", str(tmp_path), raising=False)
    assert_same_model(load("someone/narrow"), pipes["sd1"])
    with pytest.raises(InputError, match=r"someone/narrow is a Stable Diffusion 1 model.*without pretrained_model\.v2"):
        load("someone/narrow", v2=True)


def test_a_hub_model_of_another_family_is_refused_before_its_weights_are_downloaded(folders, tmp_path, monkeypatch):
    """Only its UNet's config has been fetched."""
    repository = tmp_path / "models--someone--xl"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc" / "unet").mkdir(parents=True)
    shutil.copy(folders["sdxl"] / "unet" / "config.json", repository / "snapshots" / "abc" / "unet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"someone/xl is an SDXL model.*train_lora-scale-xl\.py"):
        load("someone/xl")


def test_weights_take_the_training_precision_and_the_vae_stays_float32(folders, files):
    for settings in (
        PretrainedModel(name_or_path="tiny"),
        PretrainedModel(name_or_path=str(folders["sd1"])),
        PretrainedModel(name_or_path=str(files["sd1"]), config=str(folders["sd1"])),
    ):
        model = load_sd(settings, torch.bfloat16)
        model.encode_prompts([""], "cpu")
        place(model.denoiser, "cpu", model.dtype)
        assert model.denoiser.dtype == model.pipe.text_encoder.dtype == torch.bfloat16
        assert model.pipe.vae.dtype == torch.float32


@pytest.mark.parametrize("name", VERSIONS)
def test_weights_of_a_single_file_are_not_converted_before_they_are_placed(pipes, folders, files, name):
    model = load_sd(
        PretrainedModel(name_or_path=str(files[name]), v2=VERSIONS[name], config=str(folders[name])), torch.bfloat16
    )
    assert_same_weights(model, pipes[name])
    place(model.denoiser, "cpu", model.dtype)
    assert torch.equal(model.denoiser.conv_in.weight, pipes[name].unet.conv_in.weight.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("config", "v_pred", "found"),
    [
        ("sd2", None, "v_prediction"),
        ("sd2", False, "epsilon"),
        ("base", None, "epsilon"),
        ("base", True, "v_prediction"),
    ],
)
def test_a_single_file_of_sd2_predicts_what_the_user_says_or_else_its_config(
    folders, files, tmp_path, config, v_pred, found
):
    """The files of SD 2's models at 512 and 768 px do not differ in their keys."""
    folders = {**folders, "base": shutil.copytree(folders["sd2"], tmp_path / "base")}
    scheduler = folders["base"] / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "epsilon"}))
    model = load(files["sd2"], v2=True, config=str(folders[config]), v_pred=v_pred)
    assert model.objective.prediction_type == model.scheduler.config.prediction_type == found


def test_a_folder_of_a_v_prediction_model_cannot_be_said_to_predict_noise(folders):
    with pytest.raises(InputError, match="v_pred: false"):
        load(folders["sd2"], v2=True, v_pred=False)


@pytest.mark.parametrize("skip", [None, 0, 1])
def test_clip_skip_takes_an_earlier_layer_and_normalises_it(pipes, folders, skip):
    """As web UIs do with Clip skip 1 + clip_skip."""
    model, pipe = load(folders["sd1"], clip_skip=skip), pipes["sd1"]
    norm = pipe.text_encoder.final_layer_norm
    ids = pipe.tokenizer("a", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        layers = pipe.text_encoder(ids, output_hidden_states=True).hidden_states
        wanted = torch.nn.functional.layer_norm(layers[1 if skip else 2][0], (32,), norm.weight, norm.bias)
    assert torch.allclose(model.encode_prompts(["a"], "cpu")["a"].tokens, wanted, atol=1e-6)


def test_a_single_file_that_lacks_weights_is_refused(folders, files, tmp_path):
    state = load_file(files["sd1"])
    del state["cond_stage_model.transformer.text_model.final_layer_norm.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="final_layer_norm"):
        load(tmp_path / "model.safetensors", config=str(folders["sd1"]))


def inpainting(folder, path):
    """A folder whose UNet takes nine channels."""
    shutil.copytree(folder, path)
    config = path / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 9}))
    return path


def inpainting_file(file, path):
    state = load_file(file)
    first = next(k for k in state if k.endswith("input_blocks.0.0.weight"))
    save_file({**state, first: state[first].repeat(1, 3, 1, 1)[:, :9].contiguous()}, path)
    return path


WRONG = {  # (script, v2, what the user has): what the sentence says
    ("train_lora-scale", False, "sdxl"): ["Stable Diffusion 1", "SDXL", "use train_lora-scale-xl.py and sample_slider-xl.py"],
    ("train_lora-scale", True, "sdxl"): ["Stable Diffusion 2", "SDXL", "use train_lora-scale-xl.py and sample_slider-xl.py"],
    ("train_lora-scale", False, "sd2"): ["Stable Diffusion 1", "Stable Diffusion 2", "pretrained_model.v2: true"],
    ("train_lora-scale", True, "sd1"): ["Stable Diffusion 2", "Stable Diffusion 1", "without pretrained_model.v2"],
    ("train_lora-scale-xl", False, "sd1"): ["SDXL", "Stable Diffusion 1", "use train_lora-scale.py"],
    ("train_lora-scale-xl", False, "sd2"): ["SDXL", "Stable Diffusion 2", "use train_lora-scale.py with pretrained_model.v2: true"],
    ("train_lora-scale", False, "inpainting"): ["not a Stable Diffusion 1 base model", "inpainting", "choose a base model"],
    ("train_lora-scale-xl", False, "inpainting-xl"): ["not an SDXL base model", "inpainting", "choose a base model"],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize(("script", "v2", "given"), WRONG)
def test_a_model_of_another_family_is_refused_before_it_is_loaded(
    folders, files, tmp_path, capsys, script, v2, given, kind
):
    sources = folders if kind == "folder" else files
    if given.startswith("inpainting"):
        change = inpainting if kind == "folder" else inpainting_file
        path = change(sources["sdxl" if given.endswith("xl") else "sd1"], tmp_path / "inpainting.safetensors")
    else:
        path = sources[given]
    argv = write_experiment(tmp_path, pretrained_model={"name_or_path": str(path), "v2": v2 or None})
    assert script_main(script)([*argv, "--dry_run"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert [word for word in (path.name, *WRONG[script, v2, given]) if word not in error] == [], error


@pytest.mark.parametrize(("script", "said"), [
    ("sample_slider", ["--v2", "train_lora-scale.py"]), ("sample_slider-xl", ["sample_slider.py with --v2"]),
])  # fmt: skip
def test_the_sample_commands_name_the_right_script_too(folders, tmp_path, capsys, script, said):
    argv = [
        "--model",
        str(folders["sd2"]),
        "--slider",
        str(tmp_path / "s.safetensors"),
        "--prompt",
        "a",
        "--device",
        "cpu",
    ]
    assert script_main(script)(argv) == 2
    error = capsys.readouterr().err
    assert [word for word in said if word not in error] == [], error


def test_a_lora_or_a_unet_alone_is_refused(tmp_path):
    save_file({"lora_unet_mid_block_resnets_0_conv1.alpha": torch.ones(())}, tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match="not a Stable Diffusion 1 checkpoint \\(a LoRA"):
        SD1_FAMILY.check_source(PretrainedModel(name_or_path=str(tmp_path / "lora.safetensors")))


def test_a_folder_of_another_kind_of_pipeline_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    with pytest.raises(InputError, match="StableDiffusion3Pipeline, but only Stable Diffusion 1 is supported"):
        SD1_FAMILY.check_source(PretrainedModel(name_or_path=str(tmp_path)))
