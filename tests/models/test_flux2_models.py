"""FLUX.2 [klein]: layers and names at the real size, latents and prompts of the tiny model, and where models come from."""

import json

import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import TRAINING_METHODS, Network, PretrainedModel
from sliders.models.flux2.architecture import FLUX2
from sliders.models.flux2.family import KLEIN_FAMILY
from sliders.models.flux2.keys import file_key, klein_file_keys
from sliders.models.flux2.latents import image_places, patched, text_places, to_maps, to_tokens, unpatched
from sliders.models.flux2.narrow import build_narrow_klein
from sliders.models.layers import reachable_layers, select_layers
from sliders.system.errors import InputError

TINY = PretrainedModel(name_or_path="tiny")


@pytest.fixture(scope="module")
def real():
    """The transformer of the 4B model, without weights."""
    return KLEIN_FAMILY.weightless_denoiser("black-forest-labs/FLUX.2-klein-base-4B")


@pytest.fixture(scope="module")
def tiny():
    return KLEIN_FAMILY.load(TINY, torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("narrow") / "klein"
    build_narrow_klein().save_pretrained(path)
    return path


# --- layers and names


def test_the_real_transformer_has_the_size_of_the_published_file(real):
    """7,751,105,712 bytes in bfloat16, of which the header is the rest; joining projections changes no count."""
    assert real.num_parameters() == 3_875_544_576
    assert len(real.transformer_blocks) == 5 and len(real.single_transformer_blocks) == 20


@pytest.mark.parametrize(
    ("network_type", "method", "layers", "parameters"),
    [("lierla", "full", 60, 17_694_720), ("lierla", "noxattn", 50, 16_220_160),
     ("c3lier", "full", 80, 23_101_440), ("c3lier", "noxattn", 60, 18_923_520)],
)  # fmt: skip
def test_layers_of_each_choice_at_rank_16(real, network_type, method, layers, parameters):
    with torch.device("meta"):
        network = AdaptorNetwork(real, Network(type=network_type, training_method=method, rank=16))
    network.remove()
    assert (len(network.module_paths), network.num_parameters()) == (layers, parameters)


def test_noxattn_leaves_out_the_stream_of_the_text(real):
    left_out = select_layers(real, "c3lier", "full").keys() - select_layers(real, "c3lier", "noxattn").keys()
    names = {path.split(".", 2)[2] for path in left_out}
    assert names == {"attn.to_added_qkv", "attn.to_add_out", "ff_context.linear_in", "ff_context.linear_out"}
    assert len(left_out) == 20


def test_every_layer_in_the_blocks_has_its_own_name_in_files(real):
    reachable = reachable_layers(real)
    assert {file_key(path) for path in reachable} == klein_file_keys()
    assert len(reachable) == len(klein_file_keys()) == 80


def test_every_training_method_is_offered_or_refused_with_its_reason(real):
    assert FLUX2.methods.keys() | FLUX2.refused.keys() == set(TRAINING_METHODS)
    assert not FLUX2.methods.keys() & FLUX2.refused.keys()
    for method in FLUX2.refused:
        with pytest.raises(
            InputError, match=rf"network\.training_method: {method} chooses no .*: use full or noxattn\."
        ):
            select_layers(real, "c3lier", method)


def test_patterns_choose_layers(real):
    network = Network(type="lierla", training_method="noxattn", include=["*ff_context*"], exclude=["single_*"])
    with torch.device("meta"):
        found = AdaptorNetwork(real, network)
    found.remove()
    assert len(found.module_paths) == 10 + 10


# --- latents and prompts


def test_patches_are_channels_in_the_order_of_diffusers():
    latents = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(patched(latents), Flux2KleinPipeline._patchify_latents(latents))
    assert patched(latents)[1, 2 * 4 + 1 * 2 + 0, 1, 2] == latents[1, 2, 3, 4]
    assert torch.equal(unpatched(patched(latents)), latents)


def test_tokens_and_their_places_are_those_of_diffusers():
    maps = torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_tokens(maps), Flux2KleinPipeline._pack_latents(maps))
    assert torch.equal(to_maps(to_tokens(maps), (3, 5)), maps)
    assert torch.equal(image_places((3, 5), maps.device), Flux2KleinPipeline._prepare_latent_ids(maps)[0])
    assert torch.equal(text_places(7, maps.device), Flux2KleinPipeline._prepare_text_ids(torch.zeros(1, 7, 2))[0])


def test_an_image_is_encoded_by_its_mode_and_normalised_as_in_diffusers(tiny):
    image = Image.effect_noise((64, 32), 90).convert("RGB")
    mean, deviation = tiny.encode_image(image)
    assert mean.shape == tiny.facts.latent_shape(32, 64) == (128, 2, 4)
    assert not deviation.any()
    pixels = tiny.pipe.image_processor.preprocess(image)
    wanted = tiny.pipe._encode_vae_image(pixels, generator=torch.Generator())[0]
    assert (tiny.normalise(mean) - wanted).abs().max() < 1e-5
    assert (tiny.denormalise(tiny.normalise(mean)) - mean).abs().max() < 1e-5
    picture = tiny.decode(tiny.normalise(mean))
    assert picture.shape == (3, 32, 64)


def test_prompts_are_encoded_as_in_diffusers(tiny):
    pipe = build_narrow_klein()
    for prompt, tokens in tiny.encode_prompts(["", "a disc"], "cpu").items():
        wanted, _ = pipe.encode_prompt(prompt)
        assert tokens.tokens.shape == (512, 96)
        assert torch.equal(tokens.tokens, wanted[0])


def test_a_long_prompt_is_reported(tiny, capsys):
    tiny.encode_prompts(["x" * 600], "cpu")
    assert "but the model reads only the first 512: shorten it." in capsys.readouterr().out


# --- where models come from


def test_a_folder_is_loaded_in_the_precision_of_the_run(folder):
    model = KLEIN_FAMILY.load(PretrainedModel(name_or_path=str(folder)), torch.bfloat16)
    model.encode_prompts(["a"], "cpu")
    assert model.denoiser.dtype == model.pipe.text_encoder.dtype == torch.bfloat16
    assert model.vae.dtype == torch.float32
    tiny = KLEIN_FAMILY.load(TINY, torch.bfloat16)
    assert model.fingerprint() == tiny.fingerprint()
    assert torch.equal(model.vae.bn.running_mean, tiny.vae.bn.running_mean)
    assert not model.distilled
    denoiser = KLEIN_FAMILY.weightless_denoiser(str(folder))
    assert {n: p.shape for n, p in denoiser.named_parameters()} == {
        n: p.shape for n, p in model.denoiser.named_parameters()
    }


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
        ("model_index.json", {"_class_name": "Flux2Pipeline"}, r"is a Flux2Pipeline, but only Flux2KleinPipeline is"),
        (TRANSFORMER, {"guidance_embeds": True}, "guidance_embeds True, not False"),
        (TRANSFORMER, {"num_layers": 8, "num_single_layers": 24}, r"has 8 \+ 24 blocks, .* 9B one"),
        (TRANSFORMER, {"joint_attention_dim": 100}, "reads 100 values per token .* have 96"),
        (TRANSFORMER, {"num_single_layers": 3}, r"transformer lacks \d+ weight\(s\), such as single_transformer_blocks\.2"),
        (TRANSFORMER, {"mlp_ratio": 2.0}, r"has the shape \[\d+, 32\], and the model's is"),
    ],
)  # fmt: skip
def test_other_models_are_refused_before_weights_are_loaded(folder, tmp_path, name, values, said):
    other = changed(folder, tmp_path / "other", name, **values)
    with pytest.raises(InputError, match=said):
        KLEIN_FAMILY.check_source(PretrainedModel(name_or_path=str(other)))


def test_a_model_with_weights_that_are_not_finite_is_refused(folder, tmp_path):
    other = changed(folder, tmp_path / "other", "model_index.json")
    path = other / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_in.weight"][0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"weight\(s\) of its AutoencoderKLFlux2 contain NaN"):
        KLEIN_FAMILY.load(PretrainedModel(name_or_path=str(other)), torch.float32)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"v2": True}, r"pretrained_model\.v2: True is for Stable Diffusion 2: remove it\."),
        ({"v_pred": True}, r"pretrained_model\.v_pred: True is for models of noise or v"),
        ({"clip_skip": 1}, r"pretrained_model\.clip_skip: 1 is for CLIP"),
        ({"config": "x"}, r"pretrained_model\.config: x is for single files, and tiny is none"),
        ({"name_or_path": "no such"}, "is neither an existing folder or file nor a hub id like black-forest-labs/"),
    ],
)
def test_settings_of_other_families_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        KLEIN_FAMILY.check_source(PretrainedModel(**{"name_or_path": "tiny", **settings}))


# --- single files


def original_state(pipe):
    """The transformer with the names of the original checkpoint, written down from the network's own structure."""
    ours, found = pipe.transformer.state_dict(), {}
    for stream, norms, names in (
        ("img", ("norm_q", "norm_k"), ("to_q", "to_k", "to_v", "to_out.0", "ff")),
        (
            "txt",
            ("norm_added_q", "norm_added_k"),
            ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context"),
        ),
    ):
        block, theirs = "transformer_blocks.0.", "double_blocks.0."
        *qkv, proj, ff = names
        found[f"{theirs}{stream}_attn.qkv.weight"] = torch.cat([ours[f"{block}attn.{n}.weight"] for n in qkv])
        found[f"{theirs}{stream}_attn.proj.weight"] = ours[f"{block}attn.{proj}.weight"]
        for norm, name in zip(norms, ("query", "key"), strict=True):
            found[f"{theirs}{stream}_attn.norm.{name}_norm.scale"] = ours[f"{block}attn.{norm}.weight"]
        found[f"{theirs}{stream}_mlp.0.weight"] = ours[f"{block}{ff}.linear_in.weight"]
        found[f"{theirs}{stream}_mlp.2.weight"] = ours[f"{block}{ff}.linear_out.weight"]
    for index in (0, 1):
        block, theirs = f"single_transformer_blocks.{index}.attn.", f"single_blocks.{index}."
        found[f"{theirs}linear1.weight"] = ours[f"{block}to_qkv_mlp_proj.weight"]
        found[f"{theirs}linear2.weight"] = ours[f"{block}to_out.weight"]
        found[f"{theirs}norm.query_norm.scale"] = ours[f"{block}norm_q.weight"]
        found[f"{theirs}norm.key_norm.scale"] = ours[f"{block}norm_k.weight"]
    time = "time_guidance_embed.timestep_embedder.linear_"
    modulations = {name.split(".")[0] for name in ours if "_modulation" in name}
    for name, other in (
        ("x_embedder", "img_in"), ("context_embedder", "txt_in"), (f"{time}1", "time_in.in_layer"),
        (f"{time}2", "time_in.out_layer"), ("proj_out", "final_layer.linear"),
        *((f"{modulation}.linear", f"{modulation}.lin") for modulation in modulations),
    ):  # fmt: skip
        found[f"{other}.weight"] = ours[f"{name}.weight"]
    scale, shift = ours["norm_out.linear.weight"].chunk(2)
    found["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
    return {key: tensor.clone() for key, tensor in found.items()}


@pytest.fixture(params=["", "model.diffusion_model."])
def file(request, tmp_path):
    """The tiny transformer as a file of its own, and the pipeline that it is from."""
    pipe = build_narrow_klein()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in pipe.transformer.named_parameters():
        if ".norm_" in name:
            parameter.data.uniform_(0.5, 2, generator=generator)  # those of a new model are all 1
    path, state = tmp_path / "klein.safetensors", original_state(pipe)
    save_file({request.param + key: tensor for key, tensor in state.items()}, path)
    return path, pipe


def test_a_single_file_is_the_transformer_beside_the_rest_of_a_folder(file, folder):
    path, pipe = file
    settings = PretrainedModel(name_or_path=str(path), config=str(folder))
    KLEIN_FAMILY.check_source(settings)
    model = KLEIN_FAMILY.load(settings, torch.float32)
    shapes = {n: p.shape for n, p in KLEIN_FAMILY.weightless_denoiser(str(path)).named_parameters()}
    assert shapes == {n: p.shape for n, p in model.denoiser.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    tokens, maps = (torch.randn(shape, generator=generator) for shape in ((1, 512, 96), (1, 128, 3, 2)))
    with torch.no_grad():
        found = model.denoise(maps, torch.tensor([699]), {"tokens": tokens})
        wanted = pipe.transformer(
            to_tokens(maps),
            tokens,
            torch.tensor([0.7]),
            image_places((3, 2), maps.device),
            text_places(512, maps.device),
        ).sample
    assert (to_tokens(found) - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_a_file_that_is_not_whole_is_refused(file, tmp_path):
    path, _ = file
    tensors = load_file(path)
    del tensors[next(key for key in tensors if key.endswith("double_blocks.0.txt_mlp.2.weight"))]
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match=r"lacks 1 weight\(s\), such as double_blocks\.0\.txt_mlp\.2\.weight"):
        KLEIN_FAMILY.check_source(PretrainedModel(name_or_path=str(tmp_path / "part.safetensors")))
    save_file({"lora_unet_a.lora_up.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match=r"holds no transformer of FLUX\.2"):
        KLEIN_FAMILY.check_source(PretrainedModel(name_or_path=str(tmp_path / "lora.safetensors")))
