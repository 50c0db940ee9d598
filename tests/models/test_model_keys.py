"""Every key of a single file is used, known to be harmless, or refused by name, before any weights are loaded."""

import json

import diffusers
import pytest
import torch
from narrow_files import FAMILIES, check, load, pipeline, save, state_of, worst_difference
from sliders.system.errors import InputError

U, V = "model.diffusion_model.", "first_stage_model."
TE, TE2 = "conditioner.embedders.0.transformer.", "conditioner.embedders.1."
F8 = torch.float8_e4m3fn


def renamed(state, *pairs):
    for old, new in pairs:
        state = {k.replace(old, new): v for k, v in state.items()}
    return state


def without(state, *beginnings):
    return {k: v for k, v in state.items() if not k.startswith(beginnings)}


def vae_attention_as_in_diffusers(state):
    return renamed(state, *((f"attn_1.{a}.", f"attn_1.{b}.") for a, b in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"),
                                                                         ("proj_out", "to_out.0"), ("norm", "group_norm"))))  # fmt: skip


def second_encoder_of_transformers(state):
    second = pipeline("sdxl").text_encoder_2.state_dict()
    return without(state, TE2) | {f"{TE2}transformer.{k}": v for k, v in second.items()}


def moving_averages_alone(state):
    averages = {
        "model_ema." + k.removeprefix("model.").replace(".", ""): v for k, v in state.items() if k.startswith(U)
    }
    return without(state, U) | averages | {"model_ema.decay": torch.tensor(0.99)}


def linear_projection(state):
    return {k: v for k, v in state.items() if k != f"{TE2}model.text_projection"} | {
        f"{TE2}model.text_projection.weight": state[f"{TE2}model.text_projection"].T
    }


def encoder_of_transformers(state):
    encoder = pipeline("sd2").text_encoder.state_dict()
    names = {f"cond_stage_model.transformer.text_model.{k.removeprefix('text_model.')}": v for k, v in encoder.items()}
    return without(state, "cond_stage_model.") | names


def scaled(state, name, per_output=False, dtype=F8):
    """The UNet's linear weights as ComfyUI stores them: times a factor, in 8 bits."""
    found = dict(state)
    for key, weight in state.items():
        if not (key.startswith(U) and key.endswith(".weight") and weight.ndim == 2):
            continue
        largest = 120 if dtype is torch.int8 else 400
        peak = weight.abs().amax(1, keepdim=True) if per_output else weight.abs().max()
        factor = peak.clamp(min=1e-6) / largest
        found[key] = (weight / factor).round().to(dtype) if dtype is torch.int8 else (weight / factor).to(dtype)
        found[key.removesuffix("weight") + name] = factor
        found[key.removesuffix("weight") + "scale_input"] = torch.tensor(1.0)
    return found


HARMLESS = {
    f"{TE}text_model.embeddings.position_ids": torch.arange(77)[None], f"{TE2}model.logit_scale": torch.tensor(4.6),
    f"{TE}logit_scale": torch.tensor(4.6), f"{V}loss.logvar": torch.zeros(1), "posterior_variance": torch.zeros(1000),
    "model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(7), "global_step": torch.tensor(5),
    "embedding_manager.initial_embeddings.x": torch.zeros(2), f"{TE}text_projection.weight": torch.zeros(2, 2),
    f"{TE}vision_model.embeddings.class_embedding": torch.zeros(3),
}  # fmt: skip
LOADED = {  # name: (family, what is done to the state dict, largest relative error of a weight)
    "as it is": ("sdxl", lambda s: s, 0),
    "SD 1 as it is": ("sd1", lambda s: s, 0),
    "SD 2 as it is": ("sd2", lambda s: s, 0),
    "harmless keys": ("sdxl", lambda s: s | HARMLESS, 0),
    "second encoder of transformers": ("sdxl", second_encoder_of_transformers, 0),
    "no text_model, SDXL": ("sdxl", lambda s: renamed(s, (f"{TE}text_model.", TE)), 0),
    "no text_model, SD 1": ("sd1", lambda s: renamed(s, (".text_model.", ".")), 0),
    "SD 2's encoder of transformers": ("sd2", encoder_of_transformers, 0),
    "VAE attention of diffusers": ("sdxl", vae_attention_as_in_diffusers, 0),
    "VAE attention of diffusers, SD 1": ("sd1", vae_attention_as_in_diffusers, 0),
    "VAE under another prefix": ("sdxl", lambda s: renamed(s, (V, "vae.")), 0),
    "moving averages alone": ("sdxl", moving_averages_alone, 0),
    "moving averages alone, SD 1": ("sd1", moving_averages_alone, 0),
    "moving averages beside": ("sdxl", lambda s: s | without(moving_averages_alone(s), "cond", "first"), 0),
    "projection as a linear layer's": ("sdxl", linear_projection, 0),
    "projection renamed": ("sdxl", lambda s: renamed(s, ("model.text_projection", "model.text_projection.weight")), 0),
    "float64": ("sdxl", lambda s: {k: v.double() for k, v in s.items()}, 0),
    "plain float8": ("sd1", lambda s: {k: v.to(F8) for k, v in s.items()}, 0.08),
    "scaled float8": ("sdxl", lambda s: scaled(s, "scale_weight") | {"scaled_fp8": torch.zeros(2, dtype=F8)}, 0.05),
    "scaled float8, new names": ("sd1", lambda s: scaled(s, "weight_scale"), 0.05),
    "scaled float8 per output": ("sd2", lambda s: scaled(s, "weight_scale", per_output=True), 0.05),
    "scaled int8 per output": ("sdxl", lambda s: scaled(s, "weight_scale", per_output=True, dtype=torch.int8), 0.05),
}  # fmt: skip


@pytest.mark.parametrize("name", LOADED)
def test_what_can_be_read_rightly_is_loaded(narrow_folders, tmp_path, name):
    family, change, error = LOADED[name]
    path = save(tmp_path / "model.safetensors", change(state_of(family)))
    check(family, path, narrow_folders[family])
    assert worst_difference(load(family, path, narrow_folders[family]), family) <= error


def quantised_mark(form):
    return torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)


FIRST = f"{U}input_blocks.4.1.proj_in.weight"
REFUSED = {  # name: (family, what is done to the state dict, words of the sentence)
    "no VAE": ("sdxl", lambda s: without(s, V), "contains no VAE: choose a complete SDXL checkpoint"),
    "no VAE, SD 1": ("sd1", lambda s: without(s, V), "contains no VAE"),
    "no second encoder": ("sdxl", lambda s: without(s, TE2), "contains no second text encoder"),
    "no encoder, SD 2": ("sd2", lambda s: without(s, "cond_"), "contains no text encoder"),
    "UNet alone": ("sd1", lambda s: {k: v for k, v in s.items() if k.startswith(U)}, "contains no VAE and no text encoder"),
    "no UNet": ("sdxl", lambda s: without(s, U), "contains no UNet"),
    "a part of the VAE": ("sdxl", lambda s: without(s, f"{V}decoder."), r"lacks \d+ weight\(s\) of its VAE, such as first_stage"),
    "UNet without prefix": ("sdxl", lambda s: {k[len(U):]: v for k, v in s.items() if k.startswith(U)}, r"a UNet alone\?"),
    "LoRA keys": ("sdxl", lambda s: s | {"lora_unet_x.alpha": torch.tensor(1.0)}, r"1 key\(s\) of a LoRA, which is not merged"),
    "ControlNet": ("sd1", lambda s: s | {"control_model.zero_convs.0.0.weight": torch.zeros(1)}, "a ControlNet"),
    "motion modules": ("sd1", lambda s: s | {f"{U}input_blocks.1.motion_modules.0.x": torch.zeros(1)}, "motion modules"),
    "IP-Adapter": ("sdxl", lambda s: s | {"ip_adapter.1.to_k_ip.weight": torch.zeros(1)}, "an IP-Adapter"),
    "bitsandbytes": ("sdxl", lambda s: s | {FIRST + ".quant_state.bitsandbytes__nf4": torch.zeros(1)}, "quantised weights"),
    "absmax": ("sd2", lambda s: s | {f"{U}x.weight.absmax": torch.zeros(1)}, "quantised weights"),
    "packed 4 bits": ("sdxl", lambda s: s | {FIRST: torch.zeros(9, dtype=torch.uint8)}, "does not fit|is stored as uint8"),
    "int8 without a scale": ("sdxl", lambda s: s | {FIRST: s[FIRST].to(torch.int8)}, "proj_in.weight is stored as int8"),
    "scales in blocks": ("sdxl", lambda s: s | {FIRST: s[FIRST].to(F8), FIRST + "_scale": torch.ones(2, 2)}, "not one factor"),
    "a scale beside a plain weight": ("sdxl", lambda s: s | {FIRST + "_scale": torch.ones(())}, "belongs to a weight of 8 bits"),
    "lost scales": ("sdxl", lambda s: s | {"scaled_fp8": torch.zeros(2, dtype=F8)}, "contains no scales"),
    "unknown format": ("sdxl", lambda s: s | {f"{U}input_blocks.4.1.proj_in.comfy_quant": quantised_mark("nvfp4")}, "format nvfp4"),
    "unknown key": ("sd1", lambda s: s | {"something.else": torch.zeros(1)}, "such as something.else"),
    "unknown key in the UNet": ("sdxl", lambda s: s | {f"{U}time_embed.cond_proj.weight": torch.zeros(1)}, "cond_proj"),
    "both spellings": ("sdxl", lambda s: s | {k.replace(V, "vae."): v for k, v in s.items() if k.startswith(V)}, "such as vae."),
    "inpainting": ("sd1", lambda s: s | {f"{U}input_blocks.0.0.weight": torch.zeros(16, 9, 3, 3)}, "an inpainting model"),
    "instruct-pix2pix": ("sdxl", lambda s: s | {f"{U}input_blocks.0.0.weight": torch.zeros(32, 8, 3, 3)}, "an instruct-pix2pix model"),
    "refiner": ("sdxl", lambda s: renamed(without(s, TE), (TE2, TE[:-12])), "a refiner"),
    "learned variance": ("sd1", lambda s: s | {f"{U}out.2.weight": torch.zeros(8, 16, 3, 3)}, "out.2.weight, of its UNet, has the shape"),
    "other latents' factor": ("sdxl", lambda s: s | {"scale_factor": torch.tensor(0.5)}, "scale_factor is 0.5"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_the_rest_is_refused_before_it_is_loaded(narrow_folders, tmp_path, name):
    family, change, words = REFUSED[name]
    path = save(tmp_path / "model.safetensors", change(state_of(family)))
    with pytest.raises(InputError, match=words) as error:
        check(family, path, narrow_folders[family])
    assert len(str(error.value).splitlines()) == 1 and str(path) in str(error.value)


def test_sizes_of_a_single_file_need_the_folder_that_describes_them(tmp_path):
    path = save(tmp_path / "model.safetensors", state_of("sdxl"))
    with pytest.raises(InputError, match=r"does not fit.*pretrained_model\.config|lacks \d+ weight"):
        check("sdxl", path)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_that_diffusers_reads(narrow_folders, tmp_path, family):
    """Its converters are another derivation of the names than ours."""
    path = save(tmp_path / "model.safetensors", state_of(family))
    pipe = pipeline(family)
    for part, cls in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        found = cls.from_single_file(str(path), config=str(narrow_folders[family]), subfolder=part).state_dict()
        wanted = getattr(pipe, part).state_dict()
        assert found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)
    whole = type(pipe).from_single_file(str(path), config=str(narrow_folders[family]), safety_checker=None)
    for part in [name for name in pipe.components if name.startswith("text_encoder")]:
        found, wanted = getattr(whole, part).state_dict(), getattr(pipe, part).state_dict()
        assert all(torch.equal(found[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize(("part", "key"), [
    ("UNet", f"{U}out.2.weight"), ("CLIPTextModelWithProjection", f"{TE2}model.ln_final.weight"),
    ("AutoencoderKL", f"{V}decoder.conv_out.bias"),
])  # fmt: skip
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(narrow_folders, tmp_path, train_main, capsys, part, key, bad):
    from experiments import experiment

    state = state_of("sdxl") | {key: torch.full_like(state_of("sdxl")[key], bad)}
    path = save(tmp_path / "model.safetensors", state)
    source = {"name_or_path": str(path), "config": str(narrow_folders["sdxl"])}
    assert train_main(experiment(tmp_path / "run", pretrained_model=source)) == 2
    error = capsys.readouterr().err
    assert part in error and "contain NaN or infinity" in error and str(path) in error
