"""What a model's files state about its noise is read, or refused by name; contradictions are refused too."""

import pytest
import torch
from narrow_files import change_json, check, copied, load, save, state_of
from sliders.models.diffusers_unet.narrow import build_scheduler
from sliders.models.objective import Objective
from sliders.system.errors import InputError

EPSILON, V = "epsilon", "v_prediction"
PREDICTS_NOISE = {"prediction_type": EPSILON}
EMPTY = torch.zeros(0)
BETAS = dict(build_scheduler().config)
PLAIN, RESCALED = (Objective.from_scheduler_config(BETAS, V, zero).alphas.square() for zero in (False, True))


def spec(value):
    return {"modelspec.prediction_type": value}


READ = {  # name: (family, keys, metadata, the folder's scheduler, v_pred, prediction, zero terminal SNR)
    "nothing": ("sdxl", {}, None, {}, None, EPSILON, False),
    "epsilon": ("sdxl", {}, spec("epsilon"), {}, None, EPSILON, False),
    "v in metadata": ("sdxl", {}, spec("v"), {}, None, V, False),
    "v in metadata, SD 1": ("sd1", {}, spec("v"), {}, None, V, False),
    "V_Prediction": ("sd1", {}, spec("V-Prediction"), {}, None, V, False),
    "ss_v_parameterization": ("sdxl", {}, {"ss_v_parameterization": "True"}, {}, None, V, False),
    "ss_v_parameterization false": ("sdxl", {}, {"ss_v_parameterization": "False"}, {}, None, EPSILON, False),
    "ComfyUI's predict_key": ("sdxl", {}, {"modelspec.predict_key": "v"}, {}, None, V, False),
    "architecture 768-v": ("sd2", {}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, PREDICTS_NOISE, None, V, False),
    "kohya's version": ("sd2", {}, {"ss_base_model_version": "sd_v2_v"}, PREDICTS_NOISE, None, V, False),
    "zero SNR in metadata": ("sdxl", {}, spec("v") | {"ss_zero_terminal_snr": "True"}, {}, None, V, True),
    "keys": ("sdxl", {"v_pred": EMPTY, "ztsnr": EMPTY}, None, {}, None, V, True),
    "key v_pred alone": ("sd1", {"v_pred": EMPTY}, None, {"rescale_betas_zero_snr": True, "prediction_type": V}, None, V, False),
    "keys and metadata agree": ("sdxl", {"v_pred": EMPTY}, spec("v"), {}, None, V, False),
    "the folder's scheduler": ("sdxl", {}, None, {"prediction_type": V, "rescale_betas_zero_snr": True}, None, V, True),
    "the file before the folder": ("sd2", {}, spec("epsilon"), {}, None, EPSILON, False),
    "the settings": ("sdxl", {}, None, {}, True, V, False),
    "the settings, zero SNR in the file": ("sdxl", {"ztsnr": EMPTY}, None, {}, True, V, True),
    "the settings for SD 2": ("sd2", {}, None, {}, False, EPSILON, False),
    "own schedule": ("sd1", {"alphas_cumprod": PLAIN}, None, {}, None, EPSILON, False),
    "own schedule in half": ("sd1", {"alphas_cumprod": PLAIN.half()}, None, {}, None, EPSILON, False),
    "own betas": ("sd1", {"betas": torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2}, None, {}, None, EPSILON, False),
    "own sigmas": ("sdxl", {"denoiser.sigmas": ((1 - PLAIN) / PLAIN).sqrt()}, None, {}, None, EPSILON, False),
    "own schedule of zero SNR": ("sdxl", {"alphas_cumprod": RESCALED, "v_pred": EMPTY}, None, {}, None, V, True),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_is_stated_is_read(narrow_folders, tmp_path, name):
    family, keys, metadata, scheduler, v_pred, prediction, zero = READ[name]
    folder = copied(narrow_folders[family], tmp_path / "json")
    change_json(folder / "scheduler" / "scheduler_config.json", **scheduler)
    path = save(tmp_path / "model.safetensors", state_of(family) | keys, metadata)
    model = load(family, path, folder, v_pred=v_pred)
    assert model.objective.prediction_type == model.scheduler.config.prediction_type == prediction
    assert (model.objective.alphas[-1] < 1e-6) == zero == bool(model.scheduler.config.rescale_betas_zero_snr)


REFUSED = {  # name: (family, keys, metadata, v_pred, words)
    "edm_mean": ("sdxl", {"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}, None, None, "EDM's noise.*its key edm_mean"),
    "CosXL": ("sdxl", {"edm_vpred.sigma_max": torch.tensor(120.0)}, None, None, "its key edm_vpred.sigma_max"),
    "EDM in metadata": ("sdxl", {}, {"modelspec.architecture": "stable-diffusion-xl-v1-edm"}, None, "another noise"),
    "flow in metadata": ("sdxl", {}, spec("flow"), None, "modelspec.prediction_type: flow, which is not supported"),
    "sample in metadata": ("sd1", {}, spec("sample"), None, "modelspec.prediction_type: sample"),
    "edm prediction": ("sdxl", {}, {"modelspec.predict_key": "edm"}, None, "modelspec.predict_key: edm"),
    "keys against metadata": ("sdxl", {"v_pred": EMPTY}, spec("epsilon"), None, "contradicts itself.*epsilon.*v_pred"),
    "metadata against itself": ("sd1", {}, spec("epsilon") | {"ss_v_parameterization": "true"}, None, "contradicts itself"),
    "settings against metadata": ("sdxl", {}, spec("v"), False, "v_pred: false.*modelspec.prediction_type"),
    "settings against keys": ("sd2", {"v_pred": EMPTY}, None, False, "v_pred: false.*its key v_pred"),
    "noise under zero SNR": ("sdxl", {"ztsnr": EMPTY}, None, None, "zero terminal SNR.*v_pred: true"),
    "zero SNR by the schedule alone": ("sd1", {"alphas_cumprod": RESCALED}, None, None, "zero terminal SNR"),
    "other schedule": ("sd1", {"alphas_cumprod": PLAIN**1.1}, None, None, "a noise schedule of its own"),
    "linear betas": ("sdxl", {"betas": torch.linspace(1e-4, 0.02, 1000)}, None, None, "a noise schedule of its own"),
    "fewer timesteps": ("sd1", {"alphas_cumprod": PLAIN[::2]}, None, None, "alphas_cumprod has 500 values"),
    "not a number": ("sd1", {"alphas_cumprod": PLAIN * float("nan")}, None, None, "a noise schedule of its own"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_noise_and_contradictions_are_refused_before_loading(narrow_folders, tmp_path, name):
    family, keys, metadata, v_pred, words = REFUSED[name]
    path = save(tmp_path / "model.safetensors", state_of(family) | keys, metadata)
    with pytest.raises(InputError, match=words) as error:
        check(family, path, narrow_folders[family], v_pred=v_pred)
    assert len(str(error.value).splitlines()) == 1


UNIPC = {"_class_name": "UniPCMultistepScheduler"}
SCHEDULERS = {  # name: (changes of scheduler_config.json, words; none: accepted)
    "PNDM": ({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, None),
    "Euler": ({"_class_name": "EulerDiscreteScheduler"}, None),
    "Euler a": ({"_class_name": "EulerAncestralDiscreteScheduler"}, None),
    "DPM++": ({"_class_name": "DPMSolverMultistepScheduler"}, None),
    "UniPC": ({"_class_name": "UniPCMultistepScheduler"}, None),
    "LCM": ({"_class_name": "LCMScheduler"}, None),
    "linear betas": ({"beta_schedule": "linear"}, None),
    "trained betas": ({"trained_betas": torch.linspace(1e-3, 0.01, 1000).tolist()}, None),
    "few trained betas": ({"trained_betas": [0.1, 0.2]}, "trained_betas has 2 values"),
    "flow": ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler is not the noise"),
    "EDM": ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDMDPMSolverMultistepScheduler is not the noise"),
    "EDM Euler": ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler is not"),
    "unknown": ({"_class_name": "Nonsense"}, "Nonsense is not"),
    "flow sigmas": ({**UNIPC, "use_flow_sigmas": True, "prediction_type": EPSILON}, "use_flow_sigmas: True"),
    "flow prediction": ({**UNIPC, "prediction_type": "flow_prediction"}, "flow_prediction is not supported"),
    "sample": ({"prediction_type": "sample"}, 'prediction_type: sample is not supported, only "epsilon" or "v_prediction"'),
    "sigma_max": ({"_class_name": "EulerDiscreteScheduler", "sigma_max": 120.0}, "sigma_max: 120.0 is not supported, only null"),
    "continuous": ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type|cannot be read"),
    "500 timesteps": ({"num_train_timesteps": 500}, "num_train_timesteps: 500 is not supported, only 1000"),
    "sigmoid": ({"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}, "beta_schedule: sigmoid"),
    "nonsense betas": ({"beta_schedule": "nonsense"}, "cannot be read as a DDIMScheduler"),
    "text for a number": ({"beta_end": "large"}, "cannot be read as a DDIMScheduler"),
    "negative betas": ({"beta_start": -1.0, "beta_schedule": "linear"}, "betas are not all between 0 and 1"),
    "learned variance": ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "variance_type: learned_range"),
    "zero SNR for noise": ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_whose_noise_is_another_are_refused(narrow_folders, tmp_path, name, kind):
    changes, words = SCHEDULERS[name]
    folder = copied(narrow_folders["sdxl"], tmp_path / "model")
    change_json(folder / "scheduler" / "scheduler_config.json", **changes)
    source = (folder,) if kind == "folder" else (save(tmp_path / "m.safetensors", state_of("sdxl")), folder)
    if words is None:
        check("sdxl", *source)
        return
    with pytest.raises(InputError, match=words) as error:
        check("sdxl", *source)
    assert str(folder) in str(error.value) or kind == "file"


def test_trained_betas_are_the_noise_of_training(narrow_folders, tmp_path):
    folder = copied(narrow_folders["sd1"], tmp_path / "model")
    betas = torch.linspace(1e-3, 0.01, 1000)
    change_json(folder / "scheduler" / "scheduler_config.json", trained_betas=betas.tolist())
    assert torch.allclose(load("sd1", folder).objective.alphas.square(), (1 - betas).cumprod(0))


@pytest.mark.parametrize(("file", "changes", "words"), [
    ("vae", {"latents_mean": [1.0] * 4, "latents_std": [1.0] * 4}, "latents_mean.*EDM"),
    ("vae", {"shift_factor": 0.1}, "shift_factor: 0.1"),
    ("vae", {"latent_channels": 16}, "latent_channels: 16"),
    ("unet", {"out_channels": 8}, "out_channels: 8"),
    ("unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim: 256"),
    ("unet", {"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type: text_proj"),
    ("unet", {"projection_class_embeddings_input_dim": 128}, r"a refiner\?"),
    ("unet", {"cross_attention_dim": 97}, "97 values per token"),
    ("unet", {"in_channels": 8}, "an instruct-pix2pix model"),
])  # fmt: skip
def test_parts_that_the_denoiser_is_not_made_for_are_refused(narrow_folders, tmp_path, file, changes, words):
    folder = copied(narrow_folders["sdxl"], tmp_path / "model")
    change_json(folder / file / "config.json", **changes)
    with pytest.raises(InputError, match=words):
        check("sdxl", folder)


def test_settings_that_overrule_the_model_are_noted(narrow_folders, capsys):
    assert load("sdxl", narrow_folders["sdxl"], v_pred=True).objective.prediction_type == V
    assert "note: pretrained_model.v_pred: true counts, although" in capsys.readouterr().out


def test_zero_terminal_snr_is_sampled_by_a_scheduler_that_has_it(narrow_folders, tmp_path):
    """SD 1's own, PNDM, has not."""
    folder = copied(narrow_folders["sd1"], tmp_path / "json")
    change_json(folder / "scheduler" / "scheduler_config.json", _class_name="PNDMScheduler", skip_prk_steps=True)
    path = save(tmp_path / "model.safetensors", state_of("sd1") | {"v_pred": EMPTY, "ztsnr": EMPTY})
    scheduler = load("sd1", path, folder).scheduler
    scheduler.set_timesteps(4)
    assert scheduler.timesteps[0] == 999 and scheduler.alphas_cumprod[-1] < 1e-6
