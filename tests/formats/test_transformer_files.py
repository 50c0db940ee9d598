"""LoRAs of FLUX.2 [klein] and Z-Image as other trainers write them: each layer's product, before and after a conversion.

A product is computed from the source file alone, by the names that its trainer gives: rows of a layer of the original
checkpoint, which joins query, key and value.
"""

import json
import math
import re

import pytest
import torch
from conftest import script_main
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sliders.formats.joined_layers import in_form_of
from sliders.formats.merging import merge
from sliders.formats.slider_file import open_slider
from sliders.models import FAMILIES

FLAG = {"flux2": "klein", "zimage": "zimage"}
# {layer in diffusers: (out, in), layer in the original checkpoint, its first row there}; the narrow models' sizes
KLEIN = {
    **{f"transformer_blocks.0.attn.{name}": ((32, 32), "double_blocks.0.img_attn.qkv", 32 * i)
       for i, name in enumerate(("to_q", "to_k", "to_v"))},
    **{f"transformer_blocks.0.attn.{name}": ((32, 32), "double_blocks.0.txt_attn.qkv", 32 * i)
       for i, name in enumerate(("add_q_proj", "add_k_proj", "add_v_proj"))},
    "transformer_blocks.0.attn.to_out.0": ((32, 32), "double_blocks.0.img_attn.proj", 0),
    "transformer_blocks.0.attn.to_add_out": ((32, 32), "double_blocks.0.txt_attn.proj", 0),
    "transformer_blocks.0.ff.linear_in": ((192, 32), "double_blocks.0.img_mlp.0", 0),
    "transformer_blocks.0.ff.linear_out": ((32, 96), "double_blocks.0.img_mlp.2", 0),
    "transformer_blocks.0.ff_context.linear_in": ((192, 32), "double_blocks.0.txt_mlp.0", 0),
    "transformer_blocks.0.ff_context.linear_out": ((32, 96), "double_blocks.0.txt_mlp.2", 0),
    **{f"single_transformer_blocks.{n}.attn.to_qkv_mlp_proj": ((288, 32), f"single_blocks.{n}.linear1", 0) for n in (0, 1)},
    **{f"single_transformer_blocks.{n}.attn.to_out": ((32, 128), f"single_blocks.{n}.linear2", 0) for n in (0, 1)},
}  # fmt: skip
BLOCKS = ("layers.0", "layers.1", "noise_refiner.0", "context_refiner.0")
ZIMAGE = {
    **{f"{block}.attention.{name}": ((32, 32), f"{block}.attention.qkv", 32 * i)
       for block in BLOCKS for i, name in enumerate(("to_q", "to_k", "to_v"))},
    **{f"{block}.attention.to_out.0": ((32, 32), f"{block}.attention.out", 0) for block in BLOCKS},
    **{f"{block}.feed_forward.{name}": (size, f"{block}.feed_forward.{name}", 0)
       for block in BLOCKS for name, size in (("w1", (85, 32)), ("w2", (32, 85)), ("w3", (85, 32)))},
    "layers.1.adaLN_modulation.0": ((128, 32), "layers.1.adaLN_modulation.0", 0),
}  # fmt: skip
LAYERS = {"flux2": KLEIN, "zimage": ZIMAGE}
KOHYA, PEFT = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")


def sizes(family, form):
    """{layer: (out, in)} in the form of diffusers or of the original checkpoint."""
    layers = LAYERS[family]
    if form == "diffusers":
        return {name: size for name, (size, _, _) in layers.items()}
    found = {}
    for (out, into), name, first in layers.values():
        found[name] = (max(first + out, found.get(name, (0,))[0]), into)
    return found


def drawn(family, form, keep="", dtype=torch.float32):
    """{layer: (down, up)}, of ranks 2 to 4, random."""
    generator, found = torch.Generator().manual_seed(0), {}
    for number, (name, (out, into)) in enumerate(sizes(family, form).items()):
        if re.search(keep, name):
            rank = 2 + number % 3
            pair = torch.randn(rank, into, generator=generator), torch.randn(out, rank, generator=generator)
            found[name] = tuple(t.to(dtype) for t in pair)
    assert found
    return found


def rows(family, layer):
    """Of a layer in diffusers: the layer of the original checkpoint, and its rows."""
    (out, _), name, first = LAYERS[family][layer]
    return name, slice(first, first + out)


def products(family, form, pairs, gains):
    """{layer of the original checkpoint: ΔW}, float64."""
    found = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes(family, "original").items()}
    for layer, (down, up) in pairs.items():
        name, where = rows(family, layer) if form == "diffusers" else (layer, slice(None))
        found[name][where] += gains[layer] * up.double() @ down.double()
    return found


def converted(family, path):
    """The same of a slider file of ours, read by its definition."""
    tensors, pairs, gains = load_file(path), {}, {}
    form = {"flux2": "original", "zimage": "diffusers"}[family]
    for layer in sizes(family, form):
        key = f"lora_unet_{layer.replace('.', '_')}" if family == "flux2" else f"diffusion_model.{layer}"
        down, up = (f"{key}.{part}" for part in (KOHYA if family == "flux2" else PEFT))
        if down in tensors:
            pairs[layer] = tensors.pop(down), tensors.pop(up)
            alpha = tensors.pop(f"{key}.alpha") if family == "flux2" else torch.tensor(len(pairs[layer][0]))
            gains[layer] = alpha.item() / len(pairs[layer][0])
    assert not tensors
    return products(family, form, pairs, gains)


def named(prefix, parts, dots=True):
    """layer → (keys of down and up, key of alpha)"""

    def keys(layer):
        module = prefix + (layer if dots else layer.replace(".", "_"))
        return [f"{module}.{part}" for part in parts], f"{module}.alpha"

    return keys


SPELLINGS = {  # who writes it: family, form, keys, whether with alpha
    "AI Toolkit, klein": ("flux2", "original", named("diffusion_model.", PEFT), False),
    "SimpleTuner, klein": ("flux2", "original", named("diffusion_model.", PEFT), True),
    "Musubi Tuner, klein": ("flux2", "original", named("lora_unet_", KOHYA, dots=False), True),
    "diffusers, klein": ("flux2", "diffusers", named("transformer.", PEFT), False),
    "PEFT, klein": ("flux2", "diffusers", named("base_model.model.", PEFT), True),
    "kohya names of diffusers, klein": ("flux2", "diffusers", named("lora_transformer_", KOHYA, dots=False), True),
    "AI Toolkit, Z-Image": ("zimage", "diffusers", named("diffusion_model.", PEFT), False),
    "diffusers, Z-Image": ("zimage", "diffusers", named("transformer.", PEFT), False),
    "SimpleTuner, Z-Image": ("zimage", "diffusers", named("transformer.", PEFT), True),
    "Musubi Tuner, Z-Image": ("zimage", "diffusers", named("lora_unet_", KOHYA, dots=False), True),
    "Musubi Tuner for ComfyUI, Z-Image": ("zimage", "original", named("diffusion_model.", KOHYA), True),
    "diffusion-pipe, Z-Image": ("zimage", "original", named("diffusion_model.", PEFT), False),
    "kohya names of the original, Z-Image": ("zimage", "original", named("lora_unet_", KOHYA, dots=False), True),
}  # fmt: skip


WRITTEN_AS = {  # with --keys
    ("diffusers", "flux2"): "diffusers, klein", ("diffusers", "zimage"): "diffusers, Z-Image",
    ("ai-toolkit", "flux2"): "AI Toolkit, klein", ("ai-toolkit", "zimage"): "AI Toolkit, Z-Image",
    ("musubi-tuner", "flux2"): "Musubi Tuner, klein", ("musubi-tuner", "zimage"): "Musubi Tuner, Z-Image",
}  # fmt: skip


def written(path, family, form, keys, alpha, **choice):
    """A file of `SPELLINGS`. Returns its products. With alpha, layers differ in their gain."""
    pairs, tensors, gains = drawn(family, form, **choice), {}, {}
    for number, (layer, (down, up)) in enumerate(pairs.items()):
        gains[layer] = (0.5, 0.3, 1.0)[number % 3] if alpha else 1.0
        parts, key = keys(layer)
        tensors |= dict(zip(parts, (down, up), strict=True))
        if alpha:
            tensors[key] = torch.tensor(gains[layer] * len(down))
    save_file(tensors, path)
    return products(family, form, pairs, gains)


def convert(path, family, *flags):
    return script_main("convert_slider")([str(path), "--family", FLAG[family], "--model", "tiny", *flags])


def error(found, wanted):
    """The largest relative error of a layer's product."""
    assert found.keys() == wanted.keys()
    errors = []
    for name, product in wanted.items():
        if product.any():
            errors.append(((found[name] - product).norm() / product.norm()).item())
        else:
            assert not found[name].any(), name
    return max(errors)


@pytest.mark.parametrize(
    "keep", ["", "attn|attention", r"to_q|add_v_proj|img_attn\.qkv|feed|ff"], ids=["all", "attention", "some"]
)
@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_each_product_of_a_converted_file_is_that_of_the_source(tmp_path, spelling, keep):
    family, form, keys, alpha = spelling
    if not any(re.search(keep, name) for name in sizes(family, form)):
        pytest.skip("no such layer in this form")
    wanted = written(tmp_path / "a.safetensors", family, form, keys, alpha, keep=keep)
    assert convert(tmp_path / "a.safetensors", family) == 0
    out = tmp_path / "a_converted.safetensors"
    assert error(converted(family, out), wanted) < 1e-6
    network = open_slider(out, FAMILIES[family].weightless_denoiser("tiny").to_empty(device="cpu"), FAMILIES[family])
    assert len(network.adaptors) > 0


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_files_of_any_program_are_merged_as_they_are(tmp_path, spelling):
    family, form, keys, alpha = spelling
    wanted = written(tmp_path / "a.safetensors", family, form, keys, alpha)
    terms = [(tmp_path / "a.safetensors", multiplier) for multiplier in (1.0, -0.3)]
    merge(terms, tmp_path / "sum.safetensors", "tiny", FAMILIES[family])
    found = converted(family, tmp_path / "sum.safetensors")
    assert error(found, {name: 0.7 * product for name, product in wanted.items()}) < 1e-6


@pytest.mark.parametrize("program", ["diffusers", "ai-toolkit", "musubi-tuner"])
@pytest.mark.parametrize("family", ["flux2", "zimage"])
def test_a_slider_for_another_program_comes_back_as_it_was(tmp_path, program, family, capsys):
    """Written with its program's names, it is the source of the second conversion."""
    form = {"flux2": "original", "zimage": "diffusers"}[family]
    wanted = written(tmp_path / "a.safetensors", family, form, named("diffusion_model.", PEFT), True)
    assert convert(tmp_path / "a.safetensors", family) == 0
    ours = load_file(tmp_path / "a_converted.safetensors")
    theirs = tmp_path / "theirs.safetensors"
    assert convert(tmp_path / "a_converted.safetensors", family, "--keys", program, "--out", str(theirs)) == 0
    form, keys, alpha = SPELLINGS[WRITTEN_AS[program, family]][1:]
    tensors, pairs, gains = load_file(theirs), {}, {}
    for layer in sizes(family, form):
        parts, key = keys(layer)
        pairs[layer] = tuple(tensors.pop(part) for part in parts)
        gains[layer] = tensors.pop(key).item() / len(pairs[layer][0]) if alpha else 1.0
    assert not tensors
    assert error(products(family, form, pairs, gains), wanted) < 1e-6
    assert convert(theirs, family, "--out", str(tmp_path / "again.safetensors")) == 0
    again = load_file(tmp_path / "again.safetensors")
    assert {key: t.shape for key, t in again.items()} == {key: t.shape for key, t in ours.items()}
    assert error(converted(family, tmp_path / "again.safetensors"), wanted) < 1e-6


def test_separate_layers_that_share_their_down_keep_their_rank(tmp_path):
    """As they do if they were one layer once."""
    down, ups = torch.randn(4, 32), torch.randn(3, 32, 4)
    name = "transformer.transformer_blocks.0.attn.to_{}.lora_{}.weight".format
    tensors = {name(part, "A"): down.clone() for part in "qkv"} | {
        name(p, "B"): up for p, up in zip("qkv", ups, strict=True)
    }
    save_file(tensors, tmp_path / "a.safetensors")
    assert convert(tmp_path / "a.safetensors", "flux2") == 0
    found = load_file(tmp_path / "a_converted.safetensors")
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    assert torch.equal(found[f"{key}.lora_down.weight"], down)
    assert torch.equal(found[f"{key}.lora_up.weight"], ups.flatten(0, 1))
    assert found[f"{key}.alpha"] == 4


def test_a_converted_file_states_the_alpha_of_its_usual_rank(tmp_path, capsys):
    """Query, key and value together have three times the rank, and the alpha, of the other layers."""
    tensors = {}
    for name, ((out, into), _, _) in KLEIN.items():
        if name.startswith("single_") or name.rpartition("_")[2] in ("q", "k", "v"):
            tensors |= {
                f"transformer.{name}.{PEFT[0]}": torch.randn(4, into),
                f"transformer.{name}.{PEFT[1]}": torch.randn(out, 4),
            }
    save_file(tensors, tmp_path / "a.safetensors")
    assert convert(tmp_path / "a.safetensors", "flux2") == 0
    assert "most of them 4 alpha 4, 5 layers" in capsys.readouterr().out
    denoiser = FAMILIES["flux2"].weightless_denoiser("tiny").to_empty(device="cpu")
    opened = open_slider(tmp_path / "a_converted.safetensors", denoiser, FAMILIES["flux2"])
    assert sorted((a.rank, a.alpha) for a in opened.adaptors) == [(4, 4)] * 4 + [(12, 12)]


LAYER = "transformer_blocks.0.attn.to_qkv"
THIRDS = {name: f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")}
LORA = st.tuples(st.integers(1, 5), st.sampled_from([0.25, 0.3, 1.0, 2.0]), st.integers(0, 3))


@given(st.dictionaries(st.sampled_from([*THIRDS]), LORA, min_size=1))
@settings(max_examples=60, deadline=None)
def test_any_loras_of_query_key_and_value_are_one_of_the_three_together(drawings):
    """{layer: (rank, gain, seed of its down)}; with equal seed and rank, downs are equal."""
    modules, wanted = {}, torch.zeros(96, 32, dtype=torch.float64)
    for number, (name, (rank, gain, seed)) in enumerate(drawings.items()):
        down = torch.randn(rank, 32, generator=torch.Generator().manual_seed(seed))
        up = torch.randn(32, rank, generator=torch.Generator().manual_seed(number))
        alpha = torch.tensor(gain * rank, dtype=torch.float64)
        modules[THIRDS[name]] = {"lora_down.weight": down, "lora_up.weight": up, "alpha": alpha}
        first = 32 * [*THIRDS].index(name)
        wanted[first : first + 32] = gain * up.double() @ down.double()
    family = FAMILIES["flux2"]
    found = in_form_of("a", modules, family.weightless_denoiser("tiny"), family)
    assert found.keys() == {LAYER}
    down, up, alpha = found[LAYER].values()
    assert len(down) == sum({(rank, seed): rank for rank, _, seed in drawings.values()}.values())
    product = alpha.item() / len(down) * up.double() @ down.double()
    assert (product - wanted).norm() < 1e-6 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("spelling", ["diffusers, klein", "SimpleTuner, Z-Image"])
def test_half_precision_is_not_rounded_again(tmp_path, spelling, dtype):
    family, form, keys, alpha = SPELLINGS[spelling]
    wanted = written(tmp_path / "a.safetensors", family, form, keys, alpha, dtype=dtype)
    assert convert(tmp_path / "a.safetensors", family) == 0
    assert error(converted(family, tmp_path / "a_converted.safetensors"), wanted) < 1e-6


def test_alphas_in_the_configuration_of_peft_are_those_of_separate_layers(tmp_path):
    """As diffusers writes it, with its names and the part of the pipeline before each key."""
    pairs = drawn("flux2", "diffusers")
    tensors = {
        f"transformer.{name}.{part}": t for name, pair in pairs.items() for part, t in zip(PEFT, pair, strict=True)
    }
    config = {"r": 4, "lora_alpha": 3, "alpha_pattern": {"to_k": 1.5, r"ff\..*": 6}, "use_rslora": True}
    config = {f"transformer.{key}": value for key, value in config.items()} | {"text_encoder.lora_alpha": 64}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    gains = {}
    for name, (down, _) in pairs.items():
        alpha = 1.5 if name.endswith("to_k") else 6 if ".ff." in name else 3
        gains[name] = alpha / math.sqrt(len(down))
    assert convert(tmp_path / "a.safetensors", "flux2") == 0
    found = converted("flux2", tmp_path / "a_converted.safetensors")
    assert error(found, products("flux2", "diffusers", pairs, gains)) < 1e-6


def spoiled(family, spelling, change):
    """change: tensors → other tensors. Returns a function that writes such a file."""

    def write(path):
        written(path, *SPELLINGS[spelling])
        save_file(change(load_file(path)), path)

    return family, write


def with_other(**tensors):
    return lambda found: {**found, **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}


QKV, Q = "transformer.transformer_blocks.0.attn.to_qkv", "transformer.transformer_blocks.0.attn.to_q"
REFUSED = {
    "embedders": (*spoiled("flux2", "diffusers, klein", with_other(transformer__x_embedder__lora_A__weight=torch.ones(2, 128))),
                  [], ["1 of", "transformer.x_embedder", "model's blocks", "--family"]),
    "both forms": (*spoiled("flux2", "diffusers, klein", lambda t: {
        **t, f"{QKV}.lora_A.weight": torch.ones(2, 32), f"{QKV}.lora_B.weight": torch.ones(96, 2)}), [],
        ["transformer_blocks.0.attn.to_qkv and parts of it"]),
    "another size": (*spoiled("flux2", "diffusers, klein", lambda t: {**t, f"{Q}.lora_B.weight": torch.ones(40, 2)}), [],
                     ["to_q has another size"]),
    "half a layer": (*spoiled("zimage", "diffusion-pipe, Z-Image", lambda t: {
        k: v for k, v in t.items() if k != "diffusion_model.layers.0.attention.qkv.lora_B.weight"}), [], ["only a part"]),
    "another family": (*spoiled("flux2", "AI Toolkit, Z-Image", dict), [], ["diffusion_model.", "--family"]),
    "LoKr of one third": (*spoiled("flux2", "diffusers, klein", lambda t: {
        f"{Q}.lokr_w1": torch.ones(4, 4), f"{Q}.lokr_w2": torch.ones(8, 8)}), [], ["to_q", "only lora", "lokr"]),
    "LoKr with other names": (*spoiled("zimage", "AI Toolkit, Z-Image", lambda t: {
        "diffusion_model.layers.0.attention.to_q.lokr_w1": torch.ones(4, 4),
        "diffusion_model.layers.0.attention.to_q.lokr_w2": torch.ones(8, 8)}), ["--keys", "diffusers"], ["--keys", "lokr"]),
}  # fmt: skip


@pytest.mark.parametrize(("family", "write", "flags", "said"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_place_in_a_slider_file_is_refused_by_name(tmp_path, capsys, family, write, flags, said):
    write(tmp_path / "a.safetensors")
    assert convert(tmp_path / "a.safetensors", family, *flags) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert [word for word in said if word not in message] == [], message
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_names_of_other_programs_are_for_models_whose_files_differ(tmp_path, capsys):
    written(tmp_path / "a.safetensors", *SPELLINGS["AI Toolkit, klein"])
    argv = [str(tmp_path / "a.safetensors"), "--keys", "diffusers"]
    assert script_main("convert_slider")(argv) == 2
    assert "--keys: diffusers has no names of its own for SDXL" in capsys.readouterr().err


def test_keys_for_text_encoders_are_left_out_and_counted(tmp_path, capsys):
    text = with_other(
        **{f"text_encoder__model__layers__0__mlp__up_proj__lora_{part}__weight": torch.ones(2, 2) for part in "AB"}
    )
    family, write = spoiled("flux2", "diffusers, klein", text)
    write(tmp_path / "a.safetensors")
    assert convert(tmp_path / "a.safetensors", family) == 0
    out = capsys.readouterr().out
    assert "2 keys are for text encoders and were left out, because a slider changes no text encoder" in out
    assert "note: 6 adaptors of query, key and value are written as 2 that compute the same." in out
