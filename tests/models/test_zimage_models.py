"""Z-Image: layers and names at the real size, the stacked transformer, latents and prompts, and where models come from."""

import json

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers
from PIL import Image
from safetensors.torch import load_file, save_file
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import TRAINING_METHODS, Network, PretrainedModel
from sliders.models.layers import reachable_layers, select_layers
from sliders.models.zimage.architecture import ZIMAGE
from sliders.models.zimage.family import ZIMAGE_FAMILY
from sliders.models.zimage.keys import file_key, zimage_file_keys
from sliders.models.zimage.kind import is_turbo
from sliders.models.zimage.narrow import build_narrow_zimage
from sliders.models.zimage.transformer import to_latents, to_patches
from sliders.system.errors import InputError

TINY = PretrainedModel(name_or_path="tiny")
LONG = "a bright disc on a table, seen from above, in the light of a window"


@pytest.fixture(scope="module")
def real():
    """The transformer of the full model, without weights."""
    return ZIMAGE_FAMILY.weightless_denoiser("Tongyi-MAI/Z-Image")


@pytest.fixture(scope="module")
def tiny():
    return ZIMAGE_FAMILY.load(TINY, torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("narrow") / "zimage"
    build_narrow_zimage().save_pretrained(path)
    return path


# --- layers and names


def test_the_real_transformer_has_the_size_of_the_published_one(real):
    assert real.num_parameters() == 6_154_908_736
    assert (len(real.layers), len(real.noise_refiner), len(real.context_refiner)) == (30, 2, 2)


@pytest.mark.parametrize(
    ("network_type", "layers", "parameters"), [("lierla", 120, 14_745_600), ("c3lier", 210, 35_020_800)]
)
def test_layers_of_each_choice_at_rank_16(real, network_type, layers, parameters):
    """Those of AI Toolkit's and OneTrainer's presets, without modulation and refiners."""
    with torch.device("meta"):
        network = AdaptorNetwork(real, Network(type=network_type, training_method="full", rank=16))
    network.remove()
    assert (len(network.module_paths), network.num_parameters()) == (layers, parameters)
    assert all(path.startswith("layers.") and "adaLN" not in path for path in network.module_paths)
    shapes = {
        path.split(".", 2)[2]: tuple(layer.weight.shape)
        for path, layer in select_layers(real, network_type, "full").items()
    }
    wanted = {f"attention.{name}": (3840, 3840) for name in ("to_q", "to_k", "to_v", "to_out.0")}
    if network_type == "c3lier":
        wanted |= {f"feed_forward.{name}": (10240, 3840) for name in ("w1", "w3")} | {"feed_forward.w2": (3840, 10240)}
    assert shapes == wanted


def test_every_layer_in_layers_and_refiners_has_its_own_name_in_files(real):
    reachable = reachable_layers(real)
    assert {file_key(path) for path in reachable} == zimage_file_keys()
    assert len(reachable) == len(zimage_file_keys()) == 30 * 8 + 2 * 8 + 2 * 7


def test_patterns_add_the_modulation(real):
    with torch.device("meta"):
        found = AdaptorNetwork(
            real, Network(type="lierla", training_method="full", include=["layers.*adaLN*"], exclude=["*to_v"])
        )
    found.remove()
    assert len(found.module_paths) == 30 * (4 + 1 - 1)


def test_every_training_method_is_offered_or_refused_with_its_reason(real):
    assert ZIMAGE.methods.keys() | ZIMAGE.refused.keys() == set(TRAINING_METHODS)
    assert not ZIMAGE.methods.keys() & ZIMAGE.refused.keys()
    for method in ZIMAGE.refused:
        with pytest.raises(InputError, match=rf"network\.training_method: {method} chooses no .*: use full\."):
            select_layers(real, "c3lier", method)


# --- the transformer, latents and prompts


@pytest.mark.parametrize("prompts", [["", "a disc"], [LONG, ""], [LONG]], ids=["alike", "masked", "one"])
@pytest.mark.parametrize("size", [(16, 8), (6, 10)], ids=["whole", "filled up"])
def test_stacked_rows_equal_diffusers_lists(tiny, prompts, size):
    pipe = build_narrow_zimage()
    embeds = list(tiny.encode_prompts(prompts, "cpu").values())
    noisy = torch.randn((len(prompts), 16, *size), generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([199, 899])[: len(prompts)]
    conditioning = tiny.conditioning(embeds, [])
    assert ("attended" in conditioning) == (prompts == [LONG, ""])
    with torch.no_grad():
        found = tiny.denoise(noisy, timesteps, conditioning)
        tokens = [p.tokens for p in embeds]
        wanted = pipe.transformer([*noisy[:, :, None]], 1 - (timesteps + 1) / 1000, tokens).sample
    error = (found + torch.stack(wanted)[:, :, 0]).abs().max().item()
    print("error", error)
    assert error < 1e-5


def test_patches_are_those_of_diffusers(tiny):
    latents = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    wanted, _, _ = tiny.denoiser._patchify_image(latents[1][:, None], 2, 1)
    assert torch.equal(to_patches(latents)[1], wanted)
    assert torch.equal(to_latents(to_patches(latents), (2, 3)), latents)


def test_an_image_is_encoded_by_its_mode_and_normalised(tiny):
    image = Image.effect_noise((64, 32), 90).convert("RGB")
    mean, deviation = tiny.encode_image(image)
    assert mean.shape == tiny.facts.latent_shape(32, 64) == (16, 4, 8)
    assert not deviation.any()
    pixels = build_narrow_zimage().image_processor.preprocess(image)
    wanted = (tiny.vae.encode(pixels).latent_dist.mode()[0] - 0.1159) * 0.3611
    assert (tiny.normalise(mean) - wanted).abs().max() < 1e-5
    assert (tiny.denormalise(tiny.normalise(mean)) - mean).abs().max() < 1e-5
    assert tiny.decode(tiny.normalise(mean)).shape == (3, 32, 64)


def test_prompts_are_encoded_as_in_diffusers(tiny):
    pipe = build_narrow_zimage()
    for prompt, tokens in tiny.encode_prompts(["", "a disc"], "cpu").items():
        (wanted,), _ = pipe.encode_prompt([prompt], do_classifier_free_guidance=False)
        assert torch.equal(tokens.tokens, wanted)


def test_a_long_prompt_is_reported(tiny, capsys):
    assert len(tiny.encode_prompts(["x" * 600], "cpu")["x" * 600].tokens) == 512
    assert "but the model reads only the first 512: shorten it." in capsys.readouterr().out


# --- where models come from


@pytest.mark.parametrize(
    ("name", "shift", "turbo"),
    [("Tongyi-MAI/Z-Image", None, False), ("Tongyi-MAI/Z-Image-Turbo", None, True), ("a/folder", 3.0, True),
     ("a/folder", 6.0, False), ("ostris/Z-Image-De-Turbo", 3.0, False), ("z_image_turbo_bf16.safetensors", None, True)],
)  # fmt: skip
def test_turbo_is_told_by_its_name_or_by_its_samplers_shift(name, shift, turbo):
    assert is_turbo(name, shift) == turbo


def test_a_folder_is_loaded_in_the_precision_of_the_run(folder):
    model = ZIMAGE_FAMILY.load(PretrainedModel(name_or_path=str(folder)), torch.bfloat16)
    model.encode_prompts(["a"], "cpu")
    assert model.denoiser.dtype == model.pipe.text_encoder.dtype == torch.bfloat16
    assert model.vae.dtype == torch.float32
    assert model.fingerprint() == ZIMAGE_FAMILY.load(TINY, torch.bfloat16).fingerprint()
    assert not model.distilled
    shapes = {n: p.shape for n, p in ZIMAGE_FAMILY.weightless_denoiser(str(folder)).named_parameters()}
    assert shapes == {n: p.shape for n, p in model.denoiser.named_parameters()}


def changed(folder, root, name, **values):
    """A copy of the folder with values in one JSON file changed."""
    for path in folder.rglob("*"):
        if path.is_file():
            target = root / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    config = json.loads((root / name).read_text(encoding="utf-8"))
    (root / name).write_text(json.dumps({**config, **values}), encoding="utf-8")
    return root


TRANSFORMER = "transformer/config.json"


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("model_index.json", {"_class_name": "Flux2KleinPipeline"}, r"is a Flux2KleinPipeline, but only ZImagePipeline is"),
        (TRANSFORMER, {"siglip_feat_dim": 1152}, "has siglip_feat_dim 1152, not None"),
        (TRANSFORMER, {"n_layers": 31}, r"has 31 layers, and Z-Image 30"),
        (TRANSFORMER, {"cap_feat_dim": 100}, r"reads 100 values per token .* 1 state\(s\) of its text encoder have 32"),
        (TRANSFORMER, {"n_layers": 3}, r"transformer lacks \d+ weight\(s\), such as layers\.2"),
        (TRANSFORMER, {"dim": 64, "axes_dims": [16, 8, 8]}, r"has the shape \[.*\], and the model's is"),
    ],
)  # fmt: skip
def test_other_models_are_refused_before_weights_are_loaded(folder, tmp_path, name, values, said):
    other = changed(folder, tmp_path / "other", name, **values)
    with pytest.raises(InputError, match=said):
        ZIMAGE_FAMILY.check_source(PretrainedModel(name_or_path=str(other)))


def test_a_sampler_whose_shift_depends_on_the_size_is_refused(folder, tmp_path):
    other = changed(folder, tmp_path / "other", "scheduler/scheduler_config.json", use_dynamic_shifting=True)
    model = ZIMAGE_FAMILY.load(PretrainedModel(name_or_path=str(other)), torch.float32)
    with pytest.raises(InputError, match="--model: the model's scheduler has use_dynamic_shifting"):
        model.check_sampling("--model", None)


def test_settings_of_other_families_are_refused():
    with pytest.raises(InputError, match=r"pretrained_model\.clip_skip: 1 is for CLIP"):
        ZIMAGE_FAMILY.check_source(PretrainedModel(name_or_path="tiny", clip_skip=1))


# --- single files


RENAMED = {
    "to_out.0": "out",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1": "final_layer",
}


def original_state(state):
    """The transformer with the names of the original checkpoint, written down from the network's own structure."""
    found = {}
    for name, tensor in state.items():
        if name.endswith("to_q.weight"):
            parts = [state[name.replace("to_q", f"to_{letter}")] for letter in "qkv"]
            found[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif not name.endswith(("to_k.weight", "to_v.weight")):
            part = next((part for part in RENAMED if part in name), "")
            found[name.replace(part, RENAMED[part]) if part else name] = tensor.clone()
    return found


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_single_file_is_the_transformer_beside_the_rest_of_a_folder(folder, tmp_path, prefix):
    pipe, path = build_narrow_zimage(), tmp_path / "z.safetensors"
    original = original_state(pipe.transformer.state_dict())
    theirs = convert_z_image_transformer_checkpoint_to_diffusers({f"{prefix}{k}": t for k, t in original.items()})
    assert theirs.keys() == pipe.transformer.state_dict().keys()
    save_file({f"{prefix}{key}": tensor for key, tensor in original.items()}, path)
    settings = PretrainedModel(name_or_path=str(path), config=str(folder))
    ZIMAGE_FAMILY.check_source(settings)
    found = ZIMAGE_FAMILY.load(settings, torch.float32).denoiser.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in pipe.transformer.state_dict().items())
    shapes = {n: p.shape for n, p in ZIMAGE_FAMILY.weightless_denoiser(str(path)).named_parameters()}
    assert shapes == {n: found[n].shape for n in shapes}


def test_a_file_that_is_not_whole_is_refused(tmp_path):
    tensors = original_state(build_narrow_zimage().transformer.state_dict())
    del tensors["layers.1.feed_forward.w2.weight"]
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match=r"lacks 1 weight\(s\), such as layers\.1\.feed_forward\.w2\.weight"):
        ZIMAGE_FAMILY.check_source(PretrainedModel(name_or_path=str(tmp_path / "part.safetensors")))
    save_file({"lora_unet_a.lora_up.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match="holds no transformer of Z-Image"):
        ZIMAGE_FAMILY.check_source(PretrainedModel(name_or_path=str(tmp_path / "lora.safetensors")))


def test_a_model_with_weights_that_are_not_finite_is_refused(folder, tmp_path):
    other = changed(folder, tmp_path / "other", "model_index.json")
    path = other / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_in.weight"][0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"weight\(s\) of its AutoencoderKL contain NaN"):
        ZIMAGE_FAMILY.load(PretrainedModel(name_or_path=str(other)), torch.float32)
