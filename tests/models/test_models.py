"""Loading SDXL from everything that users have, and what is found out about it on the way."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from networks import SDXL_BETAS
from single_file import save_single_file
from sliders.config.schema import PretrainedModel
from sliders.models.schedule import NoiseSchedule
from sliders.models.sdxl.loading import load_sdxl
from sliders.models.sdxl.narrow import NarrowSDXL, build_narrow_sdxl
from sliders.models.sdxl.sources import check_source
from sliders.system.errors import InputError


@pytest.fixture(scope="module")
def pipe():
    """Its two text encoders differ in width, as SDXL's do: by that diffusers tells them apart in a single file."""
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
    assert_same_model(load_sdxl(PretrainedModel(name_or_path=str(folder)), torch.float32), pipe)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file(pipe, folder, tmp_path, suffix):
    path = save_single_file(pipe, tmp_path / f"model{suffix}")
    model = load_sdxl(PretrainedModel(name_or_path=str(path), config=str(folder)), torch.float32)
    assert_same_model(model, pipe)


@pytest.mark.parametrize("single", [True, False])
def test_on_windows_weights_are_read_and_not_mapped(pipe, folder, tmp_path, monkeypatch, single):
    ways, open_file = [], safetensors.torch.safe_open

    def watched(*args, backend="mmap", **kwargs):
        ways.append(backend)
        return open_file(*args, backend=backend, **kwargs)

    monkeypatch.setattr(safetensors.torch, "safe_open", watched)
    source = PretrainedModel(name_or_path=str(folder))
    if single:
        path = save_single_file(pipe, tmp_path / "model.safetensors")
        source = PretrainedModel(name_or_path=str(path), config=str(folder))
    for way in ("mmap", "pread"):
        monkeypatch.setattr("sliders.models.sdxl.loading.WAY_TO_READ", way)
        ways.clear()
        assert_same_model(load_sdxl(source, torch.float32), pipe)
        assert set(ways) == {way}


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_hub_model_from_the_cache(pipe, tmp_path, monkeypatch, variant):
    """The hub's own cache layout, so that the real loading code runs without a network."""
    snapshot = tmp_path / "models--someone--narrow-xl" / "snapshots" / "abc"
    pipe.save_pretrained(snapshot, variant=variant)
    (tmp_path / "models--someone--narrow-xl" / "refs").mkdir()
    (tmp_path / "models--someone--narrow-xl" / "refs" / "main").write_text("abc")
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert_same_model(load_sdxl(PretrainedModel(name_or_path="someone/narrow-xl"), torch.float32), pipe)


def test_weights_take_the_training_precision_and_the_vae_stays_float32(folder, pipe, tmp_path):
    path = save_single_file(pipe, tmp_path / "model.safetensors")
    for settings in (
        PretrainedModel(name_or_path="tiny"),
        PretrainedModel(name_or_path=str(folder)),
        PretrainedModel(name_or_path=str(path), config=str(folder)),
    ):
        model = load_sdxl(settings, torch.bfloat16)
        assert model.unet.dtype == model.pipe.text_encoder.dtype == torch.bfloat16
        assert model.pipe.vae.dtype == torch.float32
        assert not any(p.requires_grad for p in model.unet.parameters())
    assert same_weights(model.pipe.vae, pipe.vae)  # not through bfloat16 and back


def test_v_prediction_is_found_in_a_single_file(pipe, folder, tmp_path):
    path = save_single_file(pipe, tmp_path / "model.safetensors", announce=("v_pred", "ztsnr"))
    model = load_sdxl(PretrainedModel(name_or_path=str(path), config=str(folder)), torch.float32)
    assert model.schedule.prediction_type == "v_prediction"
    assert model.schedule.alphas_cumprod[-1] == pytest.approx(0, abs=1e-6)


def test_v_prediction_is_found_in_a_folder(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "v")
    config = json.loads((copy / "scheduler" / "scheduler_config.json").read_text())
    config |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    model = load_sdxl(PretrainedModel(name_or_path=str(copy)), torch.float32)
    assert model.schedule.prediction_type == "v_prediction"
    assert model.schedule.alphas_cumprod[-1] == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="v_pred"):
        load_sdxl(PretrainedModel(name_or_path=str(copy), v_pred=False), torch.float32)


def test_v_prediction_can_be_stated(folder):
    model = load_sdxl(PretrainedModel(name_or_path=str(folder), v_pred=True), torch.float32)
    assert model.schedule.prediction_type == "v_prediction"


def test_clip_skip_takes_an_earlier_layer(folder):
    plain, skipped = (
        load_sdxl(PretrainedModel(name_or_path=str(folder), clip_skip=skip), torch.float32).encode_prompts(
            ["a"], "cpu"
        )["a"]
        for skip in (None, 1)
    )
    assert not torch.equal(plain.tokens, skipped.tokens)
    assert torch.equal(plain.pooled, skipped.pooled)


def test_a_single_file_that_lacks_weights_is_refused(pipe, folder, tmp_path):
    from safetensors.torch import load_file, save_file

    path = save_single_file(pipe, tmp_path / "model.safetensors")
    state = load_file(path)
    del state["conditioner.embedders.1.model.text_projection"]
    save_file(state, path)
    with pytest.raises(InputError, match="text_projection"):
        load_sdxl(PretrainedModel(name_or_path=str(path), config=str(folder)), torch.float32)


def test_an_sd1_file_is_told_from_an_sdxl_one(tmp_path):
    from safetensors.torch import save_file

    save_file({"cond_stage_model.transformer.text_model.x": torch.zeros(1)}, tmp_path / "sd1.safetensors")
    with pytest.raises(InputError, match="no SDXL checkpoint"):
        check_source(PretrainedModel(name_or_path=str(tmp_path / "sd1.safetensors")))


def test_noising_equals_that_of_every_scheduler_a_config_may_name():
    """`train.noise_scheduler`: four samplers, one way of noising a training image (LMS and Euler-a after scaling)."""
    import diffusers

    schedule = NoiseSchedule.from_scheduler_config(SDXL_BETAS, "epsilon", zero_snr=False)
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    for name in ("DDIMScheduler", "DDPMScheduler", "LMSDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        for t in (1, 250, 500, 999):
            scheduler = getattr(diffusers, name)(**SDXL_BETAS)  # anew: they cache the index of a timestep
            scheduler.set_timesteps(1000)
            timestep = torch.tensor([t])
            noisy = scheduler.add_noise(latents, noise, timestep)
            noisy = scheduler.scale_model_input(noisy, scheduler.timesteps[scheduler.timesteps == t][0])
            assert torch.allclose(noisy, schedule.add_noise(latents, noise, timestep), atol=2e-6), (name, t)


def test_v_target_is_what_diffusers_calls_velocity():
    from diffusers import DDPMScheduler

    schedule = NoiseSchedule.from_scheduler_config(SDXL_BETAS, "v_prediction", zero_snr=True)
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    timesteps = torch.tensor([0, 400, 999])
    velocity = DDPMScheduler(**SDXL_BETAS, rescale_betas_zero_snr=True).get_velocity(latents, noise, timesteps)
    noisy = schedule.add_noise(latents, noise, timesteps)
    assert torch.allclose(schedule.target(noisy, latents, timesteps), velocity, atol=1e-4)
