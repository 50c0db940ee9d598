"""Converts files with every defect of the original trainers': the UNet's output stays that of the original adaptor."""

import json
import pickle

import pytest
import torch
from conftest import script_main
from experiments import everything_in
from networks import random_network, unet_output
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sliders.formats.slider_file import open_slider
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.keys import file_key, sdxl_file_keys
from sliders.models.sdxl.narrow import build_narrow_sdxl


@pytest.fixture(scope="module")
def original():
    """A UNet, an adaptor's tensors {module path: parts}, and the outputs with it at multipliers 0.7 and −0.7."""
    unet = build_narrow_sdxl().unet
    network = random_network(unet, "c3lier", "noxattn")
    outputs = {}
    for multiplier in (0.7, -0.7):
        network.set_multipliers(torch.tensor([multiplier]))
        outputs[multiplier] = unet_output(unet)
    network.remove()
    return unet, network.tensors(), outputs


@pytest.fixture(scope="session")
def convert_main():
    return script_main("convert_slider")


def keyed(tensors, name, parts=("lora_down.weight", "lora_up.weight", "alpha")):
    """{`name(module path)`.part: tensor}"""
    ours = ("lora_down.weight", "lora_up.weight", "alpha")
    return {
        f"{name(path)}.{theirs}": found[part].clone().contiguous()
        for path, found in tensors.items() for part, theirs in zip(ours, parts, strict=False)
    }  # fmt: skip


def underscored(prefix):
    return lambda path: prefix + path.replace(".", "_")


def conv_shaped(tensors):
    return {k: t[..., None, None] if t.ndim == 2 else t for k, t in tensors.items()}


DEFECTS = {
    "diffusers' spelling": ("a.safetensors", lambda t: keyed(t, underscored("lora_unet_")), []),
    "a compiled UNet": ("a.safetensors", lambda t: keyed(t, underscored("lora_unet__orig_mod_")), []),
    "compiled blocks": ("a.safetensors", lambda t: keyed(t, lambda p: "lora_unet_" + file_key(p)[10:].replace(
        "_in_layers", "__orig_mod_in_layers")), []),
    "a .pt": ("a.pt", lambda t: keyed(t, underscored("lora_unet_")), []),
    "no alpha": ("a.pt", lambda t: keyed(t, file_key, ("lora_down.weight", "lora_up.weight")), ["--alpha", "2"]),
    "LyCORIS' prefix": ("a.safetensors", lambda t: keyed(t, underscored("lycoris_")), []),
    "PEFT's names": ("a.safetensors", lambda t: keyed(
        t, lambda p: f"unet.{p}", ("lora_A.weight", "lora_B.weight")), ["--alpha", "2"]),
    "linear layers as convolutions": ("a.safetensors", lambda t: conv_shaped(keyed(t, file_key)), []),
    "already our keys": ("a.safetensors", lambda t: keyed(t, file_key), []),
    "all at once": ("a.pt", lambda t: conv_shaped(keyed(
        t, underscored("unet._orig_mod."), ("lora.down.weight", "lora.up.weight"))), ["--alpha", "2"]),
}  # fmt: skip


def write(path, tensors):
    torch.save(tensors, path) if path.suffix == ".pt" else save_file(tensors, path)


@pytest.mark.parametrize(("name", "spoil", "flags"), DEFECTS.values(), ids=DEFECTS)
def test_a_converted_slider_does_what_the_original_did(convert_main, original, tmp_path, name, spoil, flags):
    unet, tensors, outputs = original
    write(tmp_path / name, spoil(tensors))
    assert convert_main([str(tmp_path / name), "--model", "tiny", *flags]) == 0
    path = tmp_path / "a_converted.safetensors"
    assert {key.split(".", 1)[0] for key in load_file(path)} <= sdxl_file_keys()
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["ss_base_model_version"].startswith("sdxl_")
        assert file.metadata()["ss_output_name"] == "a_converted"
    network = open_slider(path, unet, SDXL_FAMILY)
    network.set_multipliers(torch.tensor([0.7]))
    assert torch.allclose(unet_output(unet), outputs[0.7], atol=1e-6)
    network.remove()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("case", [
    {"algo": "loha"}, {"algo": "glora"}, {"algo": "full"}, {"algo": "lokr"}, {"algo": "lokr", "rank": 2, "factor": 2},
], ids=lambda case: "-".join(map(str, case.values())))  # fmt: skip
def test_files_of_lycoris_are_converted(convert_main, tmp_path, case, reverse):
    """With the prefix that LyCORIS writes unless told otherwise, which A1111 does not know."""
    unet = build_narrow_sdxl().unet
    network = random_network(unet, "c3lier", "noxattn", **case)
    network.set_multipliers(torch.tensor([0.7]))
    wanted = unet_output(unet)
    network.remove()
    named = {
        f"lycoris_{path.replace('.', '_')}.{part}": tensor.contiguous()
        for path, parts in network.tensors().items() for part, tensor in parts.items()
    }  # fmt: skip
    save_file(named, tmp_path / "a.safetensors")
    flags = ["--reverse"] if reverse else []
    assert convert_main([str(tmp_path / "a.safetensors"), "--model", "tiny", *flags]) == 0
    path = tmp_path / "a_converted.safetensors"
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["ss_network_module"] == "lycoris.kohya"
        assert json.loads(file.metadata()["ss_network_args"])["algo"] == case["algo"]
    again = open_slider(path, unet, SDXL_FAMILY)
    again.set_multipliers(torch.tensor([-0.7 if reverse else 0.7]))
    assert torch.allclose(unet_output(unet), wanted, atol=1e-5)


def test_reversed_it_does_at_minus_x_what_it_did_at_x(convert_main, original, tmp_path, capsys):
    unet, tensors, outputs = original
    save_file(keyed(tensors, file_key), tmp_path / "a.safetensors")
    out = tmp_path / "b.safetensors"
    assert convert_main([str(tmp_path / "a.safetensors"), "--model", "tiny", "--reverse", "--out", str(out)]) == 0
    assert "note: --reverse restores the slider's direction" in capsys.readouterr().out
    network = open_slider(out, unet, SDXL_FAMILY)
    network.set_multipliers(torch.tensor([-0.7]))
    assert torch.allclose(unet_output(unet), outputs[0.7], atol=1e-6)
    assert (outputs[0.7] - outputs[-0.7]).abs().max() > 1e-3
    network.remove()


class Evil:
    def __reduce__(self):
        return (print, ("code has run",))


def half(tensors):
    found = keyed(tensors, file_key)
    del found[next(k for k in found if k.endswith("lora_up.weight"))]
    return found


def mixed(tensors):
    """One layer has a full difference instead of a LoRA."""
    first = file_key(min(tensors))
    others = {key: tensor for key, tensor in keyed(tensors, file_key).items() if not key.startswith(f"{first}.")}
    return {**others, f"{first}.diff": torch.ones(1)}


BAD = {
    "no alpha": (lambda t: keyed(t, file_key, ("lora_down.weight", "lora_up.weight")), [], ["lack their alpha", "--alpha"]),
    "half a layer": (half, [], ["only a part of its weights"]),
    "a LoRA of more layers": (lambda t: {**keyed(t, file_key), "lora_unet_conv_out.alpha": torch.ones(())}, [],
                              ["1 of", "lora_unet_conv_out.alpha", "only such sliders"]),
    "two algorithms": (mixed, [], ["mixes", "full", "lora", "as it is"]),
    "a DoRA": (lambda t: {**keyed(t, file_key), f"{file_key(min(t))}.dora_scale": torch.ones(1)}, [], ["dora_scale"]),
    "another model's size": (lambda t: {k: torch.cat([v, v], 1) if "down" in k else v for k, v in keyed(t, file_key).items()},
                             [], ["another size"]),
    "alpha 0": (lambda t: keyed(t, file_key), ["--alpha", "0"], ["--alpha: 0 "]),
    "a name without .safetensors": (lambda t: keyed(t, file_key), ["--out", "x.pt"], ["--out", "must end in .safetensors"]),
    "a file in the way": (lambda t: keyed(t, file_key), ["--out", "a.safetensors"], ["--out", "already exists", "--overwrite"]),
    "an unwritable folder": (lambda t: keyed(t, file_key), ["--out", "/proc/no/x.safetensors"], ["--out", "cannot be written"]),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "flags", "said"), BAD.values(), ids=BAD)
def test_what_cannot_be_converted_is_refused(convert_main, original, tmp_path, monkeypatch, capsys, spoil, flags, said):
    monkeypatch.chdir(tmp_path)
    save_file(spoil(original[1]), "a.safetensors")
    refused(convert_main, tmp_path, capsys, ["a.safetensors", "--model", "tiny", *flags], said)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("evil.pt", pickle.dumps(Evil()), "code"),
        ("text.safetensors", b"no slider", "is not a .safetensors file"),
        ("list.pt", pickle.dumps([1, 2]), "is damaged, or contains code"),
    ],
    ids=["code in a pickle", "text", "a list"],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_without_weights_are_refused_and_their_code_is_not_run(
    convert_main, tmp_path, monkeypatch, capsys, name, content, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    refused(convert_main, tmp_path, capsys, [name, "--model", "tiny"], [name, said])
    refused(convert_main, tmp_path, capsys, ["not_there.pt", "--model", "tiny"], ["not_there.pt", "check the path"])


def refused(convert_main, folder, capsys, argv, said):
    before = everything_in(folder)
    assert convert_main(argv) == 2
    out, error = capsys.readouterr()
    assert "code has run" not in out
    assert len(error.splitlines()) == 1
    assert [word for word in said if word not in error] == [], error
    assert everything_in(folder) == before
