"""LoRA files of other programs for the narrow SDXL, each with the difference that it makes to every layer's weight.

PEFT's, diffusers' and LyCORIS' files are made by their own code, the others by the rules of their keys.
"""

import json
import re

import torch
from diffusers import StableDiffusionXLPipeline
from lycoris import LycorisNetwork, create_lycoris
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from sliders.adaptors.base import shape_of
from sliders.models.layers import all_layers, reachable_layers
from sliders.models.sdxl.keys import file_key
from sliders.models.sdxl.narrow import build_narrow_sdxl

ATTENTION = r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
RESNETS = r".*\.resnets\.\d+\.(conv1|conv2|time_emb_proj|conv_shortcut)"
OTHERS = r".*(ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out|samplers\.0\.conv)"


def lora_delta(down, up, gain):
    """up · down · gain in float64, in the shape of the layer's weight."""
    product = up.double().flatten(1) @ down.double().flatten(1)
    return gain * product.view(up.shape[0], *down.shape[1:])


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
    for parameter in (p for name, p in model.named_parameters() if re.search("lora_|hada_|lokr_", name)):
        parameter.data.copy_(torch.empty(parameter.shape).normal_(std=0.3, generator=generator))
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            found[name.removeprefix(prefix)] = layer.get_delta_weight("default").detach()
    return found


PATTERNS = {"rank_pattern": {"to_k": 2, "conv1": 3}, "alpha_pattern": {"attn1.to_q": 1.5, r"ff\.net\..*": 6}}


def of_diffusers(unet, folder):
    """PEFT's configuration is in the metadata, for each part of the pipeline."""
    text = {
        "text_encoder_lora_layers": {"text_model.encoder.layers.0.mlp.fc1.lora_A.weight": torch.ones(2, 2)},
        "text_encoder_lora_adapter_metadata": {"r": 8, "lora_alpha": 64},
    }
    name, deltas, _ = of_diffusers_without_text(unet, folder, **text)
    return name, deltas, ["1 keys are for text encoders"]


def of_diffusers_without_text(unet, folder, **others):
    model = build_narrow_sdxl().unet
    config = LoraConfig(r=4, lora_alpha=3, target_modules=f"{ATTENTION}|{RESNETS}|{OTHERS}", **PATTERNS)
    model.add_adapter(config)
    deltas = adapted(model)
    StableDiffusionXLPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(model),
        unet_lora_adapter_metadata=plain(model.peft_config["default"].to_dict()),
        **others,
    )
    return "pytorch_lora_weights.safetensors", deltas, []


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


def lokr_of_peft(rank):
    """With a gain also where no factor is split, unlike LyCORIS'."""

    def make(unet, folder):
        config = LoKrConfig(r=rank, alpha=3, target_modules=f"{ATTENTION}|{RESNETS}", alpha_pattern={"to_v": 1})
        model = get_peft_model(build_narrow_sdxl().unet, config)
        deltas = adapted(model, "base_model.model.")
        model.save_pretrained(folder)
        return "adapter_model.safetensors", deltas, []

    return make


def of_lycoris(algo, targets=("Transformer2DModel", "ResnetBlock2D", "Upsample2D"), preset=None, **arguments):
    def make(unet, folder):
        model = build_narrow_sdxl().unet
        LycorisNetwork.apply_preset({"target_module": list(targets), **(preset or {})})
        try:
            wrapped = create_lycoris(
                model, 1.0, linear_dim=4, linear_alpha=3, algo=algo, conv_dim=4, conv_alpha=1, **arguments
            )
        finally:
            LycorisNetwork.apply_preset({"target_name": [], "module_algo_map": {}})
        wrapped.apply_to()
        deltas = {}
        paths = {f"lycoris_{name.replace('.', '_')}": name for name in all_layers(model)}
        generator = torch.Generator().manual_seed(4)
        for module in wrapped.loras:
            for parameter in module.parameters():
                parameter.data.copy_(torch.empty(parameter.shape).normal_(std=0.3, generator=generator))
            deltas[paths[module.lora_name]] = difference(module).detach()
        wrapped.save_weights(str(folder / "a.safetensors"), None, {})
        return "a.safetensors", deltas, []

    return make


def difference(module):
    """What LyCORIS' forward pass adds: `get_diff_weight` has the gain of a LoHa or LoKr twice."""
    return module.get_diff_weight(1.0)[0] if type(module).__name__ == "LoConModule" else module.get_weight(None)


def of_kohya(unet, folder):
    """networks.lora with conv_dim, for text encoders too, whose keys are left out."""
    drawings, tensors = drawn(unet, f"{ATTENTION}|{OTHERS}|{RESNETS}", 4), {}
    for name, (down, up) in drawings.items():
        tensors |= {f"{kohya(name)}.lora_down.weight": down, f"{kohya(name)}.lora_up.weight": up,
                    f"{kohya(name)}.alpha": torch.tensor(2.0)}  # fmt: skip
    save_file(
        tensors,
        folder / "a.safetensors",
        {"ss_base_model_version": "sdxl_base_v1-0", "ss_network_module": "networks.lora"},
    )
    return "a.safetensors", {name: lora_delta(*pair, 0.5) for name, pair in drawings.items()}, []


def of_ai_toolkit(unet, folder):
    """diffusers' names with underscores, rank and alpha of convolutions their own, in half precision."""
    drawings, tensors = drawn(unet, f"{ATTENTION}|{RESNETS}", lambda name: 2 if "conv" in name else 4), {}
    drawings = {name: (down.half(), up.half()) for name, (down, up) in drawings.items()}
    for name, (down, up) in drawings.items():
        tensors |= {f"{diffusers_name(name)}.lora_down.weight": down, f"{diffusers_name(name)}.lora_up.weight": up,
                    f"{diffusers_name(name)}.alpha": torch.tensor(1.0 if "conv" in name else 4.0).half()}  # fmt: skip
    save_file(tensors, folder / "a.safetensors", {"software": json.dumps({"name": "ai-toolkit"})})
    deltas = {name: lora_delta(*pair, 0.5 if "conv" in name else 1) for name, pair in drawings.items()}
    return "a.safetensors", deltas, []


FILES = {
    "LECO": leco, "layers of several ranks": of_several_ranks, "text encoders": with_text_encoders,
    "attention processors": processors, "a pipeline's": of_diffusers, "a UNet's in diffusers": of_a_unet_in_diffusers,
    "PEFT's": of_peft, "PEFT's within a pipeline": of_peft_within_a_pipeline, "LoHa of PEFT": loha_of_peft,
    "LoKr of PEFT": lokr_of_peft(16), "LoKr of PEFT of low rank": lokr_of_peft(2), "kohya's": of_kohya, "AI Toolkit's": of_ai_toolkit,
    "LyCORIS' LoRA": of_lycoris("locon"), "LyCORIS' LoHa": of_lycoris("loha"), "LyCORIS' LoKr": of_lycoris("lokr"),
    "LyCORIS' LoKr of low rank": of_lycoris("lokr", factor=2),
    "LoRA with Tucker": of_lycoris("locon", use_tucker=True), "LoHa with Tucker": of_lycoris("loha", use_tucker=True),
    "LoKr with Tucker": of_lycoris("lokr", factor=2, use_tucker=True),
    "LoKr with both split": of_lycoris("lokr", factor=12, decompose_both=True),
}  # fmt: skip
OUTER = ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"]
READ_ONLY = {  # what a slider file cannot say
    "layers outside the blocks": of_lycoris("lokr", preset={"target_name": OUTER}),
    "several algorithms": of_lycoris("locon", preset={"module_algo_map": {"ResnetBlock2D": {"algo": "loha"}}}),
}
