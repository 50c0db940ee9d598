"""Loads SDXL from every kind of source, and checks what is detected about the model."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from narrow_files import save_single_file
from safetensors.torch import load_file, save_file
from sliders.compute.device import place
from sliders.config.schema import PretrainedModel
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.narrow import NarrowSDXL, build_narrow_sdxl
from sliders.system.errors import InputError


@pytest.fixture(scope="module")
def pipe():
    """Its text encoders differ in width, like SDXL's: that is how diffusers distinguishes them in a single file."""
    return build_narrow_sdxl(NarrowSDXL(text_hidden_sizes=(32, 64), text_projection_dim=64), seed=4)


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "narrow"
    pipe.save_pretrained(path)
    return path


def same_weights(a, b):
    found, wanted = a.state_dict(), b.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


def assert_same_model(model, pipe):
    assert same_weights(model.pipe.unet, pipe.unet)
    assert same_weights(model.pipe.vae, pipe.vae)
    prompts = ["", "a red circle"]
    found = model.encode_prompts(prompts, "cpu")
    for prompt in prompts:
        tokens, _, pooled, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        assert torch.allclose(found[prompt].tokens, tokens[0], atol=1e-6)
        assert torch.allclose(found[prompt].pooled, pooled[0], atol=1e-6)


def test_a_diffusers_folder(pipe, folder):
    assert_same_model(SDXL_FAMILY.load(PretrainedModel(name_or_path=str(folder)), torch.float32), pipe)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file(pipe, folder, tmp_path, suffix):
    path = save_single_file(pipe, tmp_path / f"model{suffix}")
    model = SDXL_FAMILY.load(PretrainedModel(name_or_path=str(path), config=str(folder)), torch.float32)
    assert_same_model(model, pipe)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_hub_model_from_the_cache(pipe, tmp_path, monkeypatch, variant):
    """In the hub's cache layout, so that the real loading code runs offline."""
    snapshot = tmp_path / "models--someone--narrow-xl" / "snapshots" / "abc"
    pipe.save_pretrained(snapshot, variant=variant)
    (tmp_path / "models--someone--narrow-xl" / "refs").mkdir()
    (tmp_path / "models--someone--narrow-xl" / "refs" / "main").write_text("abc")
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert_same_model(SDXL_FAMILY.load(PretrainedModel(name_or_path="someone/narrow-xl"), torch.float32), pipe)


def test_weights_take_the_training_precision_and_the_vae_stays_float32(folder, pipe, tmp_path):
    path = save_single_file(pipe, tmp_path / "model.safetensors")
    for settings in (
        PretrainedModel(name_or_path="tiny"),
        PretrainedModel(name_or_path=str(folder)),
        PretrainedModel(name_or_path=str(path), config=str(folder)),
    ):
        model = SDXL_FAMILY.load(settings, torch.bfloat16)
        model.encode_prompts([""], "cpu")
        place(model.denoiser, "cpu", model.dtype)
        assert model.denoiser.dtype == model.pipe.text_encoder.dtype == torch.bfloat16
        assert model.pipe.vae.dtype == torch.float32
        assert not any(p.requires_grad for p in model.denoiser.parameters())
    assert same_weights(model.pipe.vae, pipe.vae)  # not through bfloat16 and back


def test_weights_of_a_single_file_are_not_copied_before_they_are_placed(pipe, folder, tmp_path):
    """Until then they are pages of the file."""
    half = copy.deepcopy(pipe.unet).half()
    whole = StableDiffusionXLPipeline(**{**pipe.components, "unet": half})
    for name in ("text_encoder", "text_encoder_2"):
        setattr(whole, name, copy.deepcopy(getattr(pipe, name)).half())
    path = save_single_file(whole, tmp_path / "model.safetensors")
    model = SDXL_FAMILY.load(PretrainedModel(name_or_path=str(path), config=str(folder)), torch.bfloat16)
    fingerprint = model.fingerprint()
    assert same_weights(model.denoiser, half)
    place(model.denoiser, "cpu", model.dtype)
    assert same_weights(model.denoiser, half.to(torch.bfloat16))
    model.encode_prompts(["a"], "cpu")
    assert model.fingerprint() == fingerprint


def test_a_single_file_of_mixed_dtypes_is_converted_when_it_is_loaded(pipe, folder, tmp_path):
    path = save_single_file(pipe, tmp_path / "model.safetensors")
    state = load_file(path)
    state["model.diffusion_model.out.2.weight"] = state["model.diffusion_model.out.2.weight"].half()
    save_file(state, path)
    model = SDXL_FAMILY.load(PretrainedModel(name_or_path=str(path), config=str(folder)), torch.bfloat16)
    assert model.denoiser.dtype == model.pipe.text_encoder.dtype == torch.bfloat16


def test_v_prediction_is_found_in_a_single_file(pipe, folder, tmp_path):
    path = save_single_file(pipe, tmp_path / "model.safetensors", announce=("v_pred", "ztsnr"))
    model = SDXL_FAMILY.load(PretrainedModel(name_or_path=str(path), config=str(folder)), torch.float32)
    assert model.objective.prediction_type == "v_prediction"
    assert model.objective.alphas[-1] == pytest.approx(0, abs=1e-6)


def test_v_prediction_is_found_in_a_folder(folder, tmp_path):
    v_model = shutil.copytree(folder, tmp_path / "v")
    config = json.loads((v_model / "scheduler" / "scheduler_config.json").read_text())
    config |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (v_model / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    model = SDXL_FAMILY.load(PretrainedModel(name_or_path=str(v_model)), torch.float32)
    assert model.objective.prediction_type == "v_prediction"
    assert model.objective.alphas[-1] == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="v_pred"):
        SDXL_FAMILY.load(PretrainedModel(name_or_path=str(v_model), v_pred=False), torch.float32)


def test_v_prediction_can_be_stated(folder):
    model = SDXL_FAMILY.load(PretrainedModel(name_or_path=str(folder), v_pred=True), torch.float32)
    assert model.objective.prediction_type == "v_prediction"


def test_clip_skip_takes_an_earlier_layer(folder):
    plain, skipped = (
        SDXL_FAMILY.load(PretrainedModel(name_or_path=str(folder), clip_skip=skip), torch.float32).encode_prompts(
            ["a"], "cpu"
        )["a"]
        for skip in (None, 1)
    )
    assert not torch.equal(plain.tokens, skipped.tokens)
    assert torch.equal(plain.pooled, skipped.pooled)


def test_a_single_file_that_lacks_weights_is_refused(pipe, folder, tmp_path):
    path = save_single_file(pipe, tmp_path / "model.safetensors")
    state = load_file(path)
    del state["conditioner.embedders.1.model.text_projection"]
    save_file(state, path)
    with pytest.raises(InputError, match="text_projection"):
        SDXL_FAMILY.load(PretrainedModel(name_or_path=str(path), config=str(folder)), torch.float32)


def test_an_sd1_file_is_refused(tmp_path):
    save_file({"cond_stage_model.transformer.text_model.x": torch.zeros(1)}, tmp_path / "sd1.safetensors")
    with pytest.raises(InputError, match="not an SDXL checkpoint"):
        SDXL_FAMILY.check_source(PretrainedModel(name_or_path=str(tmp_path / "sd1.safetensors")))
