"""Files as other programs write them, against the converted file: the difference of each layer's weight, in float64.

PEFT's, diffusers' and LyCORIS' files are made by their own code, the others by the rules of their keys.
"""

import json
import math
import re

import pytest
import torch
from conftest import script_main
from diffusers import StableDiffusionXLPipeline
from lycoris import LycorisNetwork, create_lycoris
from networks import random_network, unet_output
from peft import LoHaConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sliders.adaptors.base import shape_of
from sliders.config.schema import Network
from sliders.formats.slider_file import open_slider, save_slider, slider_tensors
from sliders.models.layers import choose_layers, reachable_layers
from sliders.models.sd.family import SD1_FAMILY
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.keys import file_key
from sliders.models.sdxl.narrow import build_narrow_sdxl
from torch import nn

ATTENTION = r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
RESNETS = r".*\.resnets\.\d+\.(conv1|conv2|time_emb_proj|conv_shortcut)"
OTHERS = r".*(ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out|samplers\.0\.conv)"


@pytest.fixture(scope="session")
def convert_main():
    return script_main("convert_slider")


@pytest.fixture(scope="module")
def unet():
    return build_narrow_sdxl().unet


def lora_delta(down, up, gain):
    """up · down · gain in float64, in the shape of the layer's weight."""
    product = up.double().flatten(1) @ down.double().flatten(1)
    return gain * product.view(up.shape[0], *down.shape[1:])


def dense(parts):
    """ΔW of a converted layer at multiplier 1, flat: [out, in · kh · kw]."""
    alpha = parts["alpha"].item() if "alpha" in parts else None
    found = {part: tensor.double() for part, tensor in parts.items()}
    if "diff" in found:
        return found["diff"].flatten(1)
    if "lora_up.weight" in found:
        down = found["lora_down.weight"]
        return lora_delta(down, found["lora_up.weight"], alpha / len(down)).flatten(1)
    if "hada_w1_a" in found:
        first, second = (found[f"hada_w{i}_a"] @ found[f"hada_w{i}_b"] for i in (1, 2))
        return first * second * (alpha / len(parts["hada_w1_b"]))
    w1, gain = found["lokr_w1"], 1.0
    if "lokr_w2" in found:
        w2 = found["lokr_w2"]
    else:
        w2, gain = found["lokr_w2_a"] @ found["lokr_w2_b"], alpha / len(found["lokr_w2_b"])
    return gain * torch.kron(w1, w2.flatten(1)) if w2.ndim == 2 else gain * kron4(w1, w2).flatten(1)


def kron4(w1, w2):
    return torch.kron(w1[:, :, None, None], w2)


def converted(path, unet):
    """{module path: parts} of a slider file for the narrow SDXL."""
    paths = {file_key(name): name for name in reachable_layers(unet)}
    modules = {}
    for key, tensor in load_file(path).items():
        module, _, part = key.partition(".")
        modules.setdefault(paths[module], {})[part] = tensor
    return modules


def drawn(unet, pattern, rank, seed=0):
    """{module path: (down, up)} of the layers whose whole name matches."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, layer in reachable_layers(unet).items():
        if re.fullmatch(pattern, name):
            out, into, *kernel = shape_of(layer)
            own = rank(name) if callable(rank) else rank
            own = min(own, out, into) if kernel else own
            down = torch.randn(own, into, *kernel, generator=generator)
            found[name] = down, torch.randn(out, own, *[1] * len(kernel), generator=generator)
    assert found
    return found


def kohya(name):
    return file_key(name)


def diffusers_name(name):
    return "lora_unet_" + name.replace(".", "_")


def leco(unet, folder):
    """Key by diffusers' names, alpha as an integer; of whole transformers, feed-forward and projections included."""
    drawings = drawn(unet, rf"{ATTENTION}|{OTHERS}|{RESNETS}".replace("|samplers", ""), 4)
    tensors = {}
    for name, (down, up) in drawings.items():
        tensors |= {f"{diffusers_name(name)}.{part}": t for part, t in
                    (("lora_down.weight", down), ("lora_up.weight", up), ("alpha", torch.tensor(1)))}  # fmt: skip
    torch.save(tensors, folder / "a.pt")
    return "a.pt", {name: lora_delta(*pair, 1 / len(pair[0])) for name, pair in drawings.items()}, []


def of_several_ranks(unet, folder):
    """As kohya's resizing script writes them."""
    drawings = drawn(unet, f"{ATTENTION}|{RESNETS}|{OTHERS}", lambda name: 1 + len(name.rpartition(".")[2]) % 5)
    tensors = {}
    for name, (down, up) in drawings.items():
        tensors |= {f"{kohya(name)}.lora_down.weight": down, f"{kohya(name)}.lora_up.weight": up,
                    f"{kohya(name)}.alpha": torch.tensor(0.5 * len(down))}  # fmt: skip
    save_file(tensors, folder / "a.safetensors")
    return "a.safetensors", {name: lora_delta(*pair, 0.5) for name, pair in drawings.items()}, []


def with_text_encoders(unet, folder):
    _, deltas, _ = of_several_ranks(unet, folder)
    text = {
        f"{prefix}_text_model_encoder_layers_{i}_self_attn_q_proj.{part}": torch.ones(4, 4)
        for prefix in ("lora_te1", "lora_te2") for i in range(3) for part in ("lora_down.weight", "lora_up.weight")
    }  # fmt: skip
    save_file({**load_file(folder / "a.safetensors"), **text}, folder / "b.safetensors")
    return "b.safetensors", deltas, ["12 keys are for text encoders"]


def processors(unet, folder):
    """Of diffusers up to 0.21, which applies up · down as it is."""
    drawings, tensors = drawn(unet, ATTENTION, 4), {}
    for name, (down, up) in drawings.items():
        attention, _, layer = name.partition(".to_")
        key = f"unet.{attention}.processor.to_{layer.removesuffix('.0')}_lora"
        tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    save_file(tensors, folder / "a.safetensors")
    return "a.safetensors", {name: lora_delta(*pair, 1) for name, pair in drawings.items()}, ["alpha is the rank"]


def adapted(model, prefix=""):
    """{module path: ΔW} that PEFT's own layers compute, their weights drawn."""
    generator = torch.Generator().manual_seed(4)
    found = {}
    for parameter in (p for name, p in model.named_parameters() if "lora_" in name or "hada_" in name):
        parameter.data.copy_(torch.empty(parameter.shape).normal_(std=0.3, generator=generator))
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            found[name.removeprefix(prefix)] = layer.get_delta_weight("default").detach()
    return found


PATTERNS = {"rank_pattern": {"to_k": 2, "conv1": 3}, "alpha_pattern": {"attn1.to_q": 1.5, r"ff\.net\..*": 6}}


def of_diffusers(unet, folder):
    """PEFT's configuration is in the metadata, for each part of the pipeline."""
    model = build_narrow_sdxl().unet
    config = LoraConfig(r=4, lora_alpha=3, target_modules=f"{ATTENTION}|{RESNETS}|{OTHERS}", **PATTERNS)
    model.add_adapter(config)
    deltas = adapted(model)
    StableDiffusionXLPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(model),
        unet_lora_adapter_metadata=plain(model.peft_config["default"].to_dict()),
        text_encoder_lora_layers={"text_model.encoder.layers.0.mlp.fc1.lora_A.weight": torch.ones(2, 2)},
        text_encoder_lora_adapter_metadata={"r": 8, "lora_alpha": 64},
    )
    return "pytorch_lora_weights.safetensors", deltas, ["1 keys are for text encoders"]


def plain(config):
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def of_a_unet_in_diffusers(unet, folder):
    model = build_narrow_sdxl().unet
    model.add_adapter(LoraConfig(r=4, lora_alpha=3, target_modules=ATTENTION, use_rslora=True))
    deltas = adapted(model)
    model.save_lora_adapter(folder)
    return "pytorch_lora_weights.safetensors", deltas, []


def of_peft(unet, folder):
    """`base_model.model.…`, and the configuration in a file of its own."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=f"{ATTENTION}|{RESNETS}", use_rslora=True, **PATTERNS)
    model = get_peft_model(build_narrow_sdxl().unet, config)
    deltas = adapted(model, "base_model.model.")
    model.save_pretrained(folder)
    return "adapter_model.safetensors", deltas, []


def of_peft_within_a_pipeline(unet, folder):
    """`base_model.model.unet.…`, with the configuration in the metadata."""
    name, deltas, _ = of_peft(unet, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {k.replace("base_model.model.", "base_model.model.unet."): t for k, t in load_file(folder / name).items()}
    save_file(tensors, folder / "a.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    return "a.safetensors", deltas, []


def loha_of_peft(unet, folder):
    config = LoHaConfig(r=4, alpha=3, target_modules=f"{ATTENTION}|{RESNETS}", alpha_pattern={"to_v": 1})
    model = get_peft_model(build_narrow_sdxl().unet, config)
    deltas = adapted(model, "base_model.model.")
    model.save_pretrained(folder)
    return "adapter_model.safetensors", deltas, []


def of_lycoris(algo, **arguments):
    def make(unet, folder):
        model = build_narrow_sdxl().unet
        LycorisNetwork.apply_preset({"target_module": ["Transformer2DModel", "ResnetBlock2D", "Upsample2D"]})
        wrapped = create_lycoris(
            model, 1.0, linear_dim=4, linear_alpha=3, algo=algo, conv_dim=4, conv_alpha=1, **arguments
        )
        wrapped.apply_to()
        deltas = {}
        paths = {f"lycoris_{name.replace('.', '_')}": name for name in reachable_layers(model)}
        generator = torch.Generator().manual_seed(4)
        for module in wrapped.loras:
            for parameter in module.parameters():
                parameter.data.copy_(torch.empty(parameter.shape).normal_(std=0.3, generator=generator))
            deltas[paths[module.lora_name]] = module.get_weight(None).detach() if algo != "locon" else locon(module)
        wrapped.save_weights(str(folder / "a.safetensors"), None, {})
        return "a.safetensors", deltas, []

    return make


def locon(module):
    return lora_delta(module.lora_down.weight, module.lora_up.weight, module.scale).detach()


FILES = {
    "LECO": leco, "layers of several ranks": of_several_ranks, "text encoders": with_text_encoders,
    "attention processors": processors, "a pipeline's": of_diffusers, "a UNet's in diffusers": of_a_unet_in_diffusers,
    "PEFT's": of_peft, "PEFT's within a pipeline": of_peft_within_a_pipeline, "LoHa of PEFT": loha_of_peft,
    "LyCORIS' LoRA": of_lycoris("locon"), "LyCORIS' LoHa": of_lycoris("loha"), "LyCORIS' LoKr": of_lycoris("lokr"),
    "LyCORIS' LoKr of low rank": of_lycoris("lokr", factor=2),
}  # fmt: skip


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_each_layer_of_a_converted_file_is_that_of_the_original(convert_main, unet, tmp_path, capsys, make):
    name, deltas, notes = make(unet, tmp_path)
    out = tmp_path / "out.safetensors"
    assert convert_main([str(tmp_path / name), "--model", "tiny", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert [note for note in notes if note not in said] == []
    assert len(re.findall("^note: ", said, re.MULTILINE)) == len(notes), said
    modules = converted(out, unet)
    assert modules.keys() == deltas.keys()
    for path, delta in deltas.items():
        wanted = delta.double().flatten(1)
        assert (dense(modules[path]) - wanted).norm() < 2e-6 * wanted.norm(), path


@pytest.mark.parametrize("make", [leco, of_several_ranks, of_diffusers, of_lycoris("loha")])
def test_a_converted_file_states_what_it_adapts_and_is_sampled_like_it(convert_main, tmp_path, make):
    unet = build_narrow_sdxl().unet
    name, deltas, _ = make(unet, tmp_path)
    out = tmp_path / "out.safetensors"
    assert convert_main([str(tmp_path / name), "--model", "tiny", "--out", str(out)]) == 0
    with safe_open(out, framework="pt") as file:
        settings = Network.model_validate(json.loads(file.metadata()["sliders.config"])["network"])
    assert choose_layers(unet, settings).keys() == deltas.keys()
    assert len(settings.include) <= 60
    network = open_slider(out, unet, SDXL_FAMILY)
    network.set_multipliers(torch.tensor([0.01]))
    found = unet_output(unet)
    network.remove()
    base = unet_output(unet)
    with torch.no_grad():
        for path, delta in deltas.items():
            weight = unet.get_submodule(path).weight
            weight += 0.01 * delta.view(weight.shape).float()
    wanted = unet_output(unet)
    assert (wanted - base).abs().max() > 1e-3
    assert torch.allclose(found, wanted, atol=1e-3 * (wanted - base).abs().max().item() + 1e-5)


INCLUDED = {
    "include": [{"pattern": "*ff.net*", "rank": 2, "alpha": 3}, "*proj_in", "*.to_k"], "exclude": ["mid_block*"],
}  # fmt: skip


@pytest.mark.parametrize("algo", ["lora", "loha", "lokr", "glora", "full"])
@pytest.mark.parametrize("reverse", [False, True])
def test_our_own_sliders_with_patterns_keep_their_settings_and_what_is_known(convert_main, tmp_path, algo, reverse):
    unet = build_narrow_sdxl().unet
    network = random_network(unet, "lierla", "selfattn", algo=algo, **INCLUDED)
    network.set_multipliers(torch.tensor([0.7]))
    wanted = unet_output(unet)
    network.remove()
    settings = Network(type="lierla", rank=4, alpha=2.0, training_method="selfattn", algo=algo, **INCLUDED)
    metadata = {"sliders.config": json.dumps({"network": settings.model_dump(), "train": {"lr": 1}}),
                "sliders.folders": '{"a": 1}', "sliders.card": "{}", **SDXL_FAMILY.metadata(None)}  # fmt: skip
    source, out = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    save_slider(source, slider_tensors(network, SDXL_FAMILY, torch.float32), metadata, SDXL_FAMILY)
    flags = ["--reverse"] if reverse else []
    assert convert_main([str(source), "--model", "tiny", "--out", str(out), *flags]) == 0
    again = open_slider(out, unet, SDXL_FAMILY)
    again.set_multipliers(torch.tensor([-0.7 if reverse else 0.7]))
    assert torch.allclose(unet_output(unet), wanted, atol=1e-5)
    again.remove()
    with safe_open(out, framework="pt") as file:
        found = file.metadata()
    assert json.loads(found["sliders.config"]) == json.loads(metadata["sliders.config"])
    assert found["sliders.folders"] == '{"a": 1}'
    assert ("sliders.card" in found) is not reverse  # its numbers are of the other direction

    foreign = tmp_path / "foreign.safetensors"  # without our metadata, the settings are found from the layers
    save_file(load_file(source), foreign)
    assert convert_main([str(foreign), "--model", "tiny", "--out", str(out), "--overwrite"]) == 0
    again = open_slider(out, unet, SDXL_FAMILY)
    again.set_multipliers(torch.tensor([0.7]))
    assert torch.allclose(unet_output(unet), wanted, atol=1e-5)
    again.remove()


def sd_slider(folder, method, metadata, **names):
    """A slider of the narrow Stable Diffusion 1, in diffusers' names."""
    from sliders.models.sd.narrow import NarrowSD, build_unet

    network = random_network(build_unet(NarrowSD(), names.pop("v2", False)), "c3lier", method, **names)
    path = folder / "sd.safetensors"
    save_file(
        {
            f"{SD1_FAMILY.file_key(name)}.{part}": t.contiguous()
            for name, parts in network.tensors().items()
            for part, t in parts.items()
        },
        path,
        metadata,
    )
    return str(path)


@pytest.mark.parametrize(
    ("v2", "family", "method", "metadata", "said"),
    [
        (False, "sd1", "noxattn", None, ["note: its layers fit Stable Diffusion 2 as well", "--family could not be checked"]),
        (True, "sd1", "noxattn", None, ["note: its layers fit Stable Diffusion 2 as well", "--family could not be checked"]),
        (False, "sd1", "noxattn", {"ss_base_model_version": "sd_v1"}, []),
        (True, "sd2", "noxattn", {"ss_base_model_version": "sd_v2_v"}, []),
        (True, "sd1", "noxattn", {"ss_base_model_version": "sd_v2_v"}, ["error", "Stable Diffusion 2, not", "--family sd2"]),
        (False, "sd2", "noxattn", {"ss_base_model_version": "sd_v1"}, ["error", "Stable Diffusion 1, not", "--family sd1"]),
        (False, "sdxl", "noxattn", None, ["error", "--family"]),
    ],
)  # fmt: skip
def test_a_family_that_the_layers_do_not_show_is_said_to_be_unchecked(
    convert_main, tmp_path, capsys, v2, family, method, metadata, said
):
    path = sd_slider(tmp_path, method, metadata, v2=v2)
    status = convert_main([path, "--model", "tiny", "--family", family])
    out, error = capsys.readouterr()
    assert status == (2 if "error" in said else 0)
    assert [word for word in said if word not in out + error] == []
    assert ("note" in out) == any("note" in word for word in said)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_files_of_other_precisions_are_converted(convert_main, unet, tmp_path, dtype):
    drawings = drawn(unet, ATTENTION, 4)
    tensors = {}
    for name, (down, up) in drawings.items():
        tensors |= {f"{kohya(name)}.lora_down.weight": down.to(dtype), f"{kohya(name)}.lora_up.weight": up.to(dtype),
                    f"{kohya(name)}.alpha": torch.tensor(2.0).to(dtype)}  # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors")
    assert convert_main([str(tmp_path / "a.safetensors"), "--model", "tiny"]) == 0
    modules = converted(tmp_path / "a_converted.safetensors", unet)
    for name, (down, up) in drawings.items():
        wanted = lora_delta(down.to(dtype), up.to(dtype), 2 / len(down)).flatten(1)
        assert (dense(modules[name]) - wanted).norm() < 2e-7 * wanted.norm() * math.sqrt(nn.Flatten()(wanted).shape[1])
        assert modules[name]["alpha"].dtype == torch.float32
