"""What the converter, and the loader of slider files, say to files that are misnamed, padded, cut short or damaged."""

import json
import os

import pytest
import torch
from conftest import script_main
from experiments import everything_in
from networks import random_network
from safetensors.torch import load_file, save_file
from sliders.config.schema import Network
from sliders.formats.slider_file import check_slider, open_slider
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.keys import file_key
from sliders.models.sdxl.narrow import build_narrow_sdxl
from sliders.system.errors import InputError
from sliders.system.weight_files import open_weights

SETTINGS = {"type": "lierla", "training_method": "selfattn", "rank": 4, "alpha": 2.0}


@pytest.fixture(scope="session")
def convert_main():
    return script_main("convert_slider")


@pytest.fixture(scope="module")
def tensors():
    """Of a LoRA of the narrow SDXL's self-attention, with our keys."""
    network = random_network(build_narrow_sdxl().unet, "lierla", "selfattn")
    return {f"{file_key(p)}.{k}": t.contiguous() for p, parts in network.tensors().items() for k, t in parts.items()}


def own(path, tensors):
    config = {"network": Network(**SETTINGS).model_dump()}
    save_file(tensors, path, {"sliders.config": json.dumps(config), **SDXL_FAMILY.metadata(None)})
    return path


def saved(path, tensors):
    save_file(tensors, path)


def with_a_length_like_a_pickle(path, tensors):
    """The length of its header begins with 0x80, as pickles do."""
    for filler in range(300):
        save_file(tensors, path, {"a": "b" * filler})
        if path.read_bytes()[0] == 0x80:
            return
    raise AssertionError("no length was found")


def pickled(path, tensors):
    torch.save(tensors, path)


def padded(path, tensors):
    """Some programs fill up the last block."""
    save_file(tensors, path)
    path.write_bytes(path.read_bytes() + bytes(4096))


def padded_header(path, tensors):
    save_file(tensors, path, {"a": "b"})
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length] + b" " * 512
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])


def in_old_format(path, tensors):
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def with_numbers(path, tensors):
    torch.save({key: t.item() if key.endswith("alpha") else t for key, t in tensors.items()}, path)


def linked(path, tensors):
    save_file(tensors, path.with_name("target"))
    path.symlink_to("target")


READABLE = {
    "safetensors as .pt": ("a.pt", saved), "safetensors as .ckpt": ("a.ckpt", saved),
    "safetensors without a suffix": ("a", saved), "safetensors as .bin": ("a.bin", saved),
    "upper case": ("a.SAFETENSORS", saved), "a pickle as .safetensors": ("a.safetensors", pickled),
    "a pickle as .CKPT": ("a.CKPT", pickled), "an old pickle as .safetensors": ("a.safetensors", in_old_format),
    "padded": ("a.safetensors", padded), "padded, as .pt": ("a.pt", padded), "a padded header": ("a.safetensors", padded_header),
    "alpha as a number": ("a.pt", with_numbers),
    "a state_dict": ("a.pt", lambda path, tensors: torch.save({"state_dict": tensors, "epoch": 3}, path)),
    "a length like a pickle": ("a.safetensors", with_a_length_like_a_pickle),
    "a link": ("a.safetensors", linked),
}  # fmt: skip


@pytest.mark.parametrize(("name", "write"), READABLE.values(), ids=READABLE)
def test_content_counts_not_the_name(convert_main, tensors, tmp_path, name, write):
    write(tmp_path / name, tensors)
    found = open_weights(tmp_path / name, "").read_all()
    assert found.keys() == tensors.keys()
    assert convert_main([str(tmp_path / name), "--model", "tiny", "--out", str(tmp_path / "out.safetensors")]) == 0
    out = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(out[key], tensor) for key, tensor in tensors.items())


def test_a_padded_slider_is_sampled(tensors, tmp_path):
    path = own(tmp_path / "a.safetensors", tensors)
    path.write_bytes(path.read_bytes() + bytes(100))
    assert "sliders.config" in check_slider(path, SDXL_FAMILY.weightless_denoiser("tiny"), SDXL_FAMILY).metadata
    open_slider(path, build_narrow_sdxl().unet, SDXL_FAMILY).remove()


def with_value(value, end="lora_up.weight"):
    def write(path, tensors):
        key = next(k for k in tensors if k.endswith(end))
        changed = tensors[key].clone()
        changed.view(-1)[-1] = value
        save_file({**tensors, key: changed}, path)

    return write


def with_key(key, tensor):
    return lambda path, tensors: save_file({**tensors, key: tensor}, path)


def with_part(end, tensor):
    def write(path, tensors):
        save_file({**tensors, next(k for k in tensors if k.endswith(end)): tensor}, path)

    return write


def twice(path, tensors):
    """In diffusers' names as well."""
    key = next(k for k in tensors if k.endswith("attn1_to_q.alpha") and "input_blocks_4_1" in k)
    other = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.alpha"
    save_file({**tensors, other: tensors[key].clone()}, path)


def cut(path, tensors):
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(path, tensors):
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:60])


def only_text(path, tensors):
    save_file({"lora_te1_text_model_x.lora_up.weight": torch.ones(2, 2)}, path)


def looping(path, tensors):
    path.symlink_to(path.name)


def text(content):
    return lambda path, tensors: path.write_bytes(content)


REFUSED = {
    "NaN": ("a.safetensors", with_value(float("nan")), ["lora_up.weight contains NaN", "undamaged"]),
    "infinity in a .pt": ("a.pt", with_value(float("-inf"), "lora_down.weight"), ["lora_down.weight contains NaN or infinite"]),
    "alpha NaN": ("a.safetensors", with_part(".alpha", torch.tensor(float("nan"))), ["alpha contains NaN"]),
    "alpha 0": ("a.safetensors", with_part(".alpha", torch.tensor(0.0)), ["an alpha of 0"]),
    "two alphas": ("a.safetensors", with_part(".alpha", torch.ones(2)), ["alpha of", "shape (2,)"]),
    "whole numbers": ("a.safetensors", with_part("up.weight", torch.ones(4, 4, dtype=torch.int8)), ["type int8"]),
    "complex numbers": ("a.safetensors", with_part("up.weight", torch.ones(4, 4, dtype=torch.complex64)), ["type complex64"]),
    "a vector": ("a.safetensors", with_part("down.weight", torch.ones(4)), ["shape (4,)"]),
    "nothing in it": ("a.safetensors", with_part("down.weight", torch.ones(0, 4)), ["shape (0, 4)"]),
    "a rank that is too large": ("a.safetensors", with_part("down.weight", torch.ones(5000, 64)), ["rank 5000", "1 to 4096"]),
    "a layer twice": ("a.safetensors", twice, ["are for the same layer", "keep one"]),
    "a layer outside the blocks": ("a.safetensors", with_key("lora_unet_conv_in.alpha", torch.ones(())),
                                   ["1 of", "lora_unet_conv_in.alpha", "only such sliders"]),
    "text encoders alone": ("a.safetensors", only_text, ["all its 1 keys are for text encoders"]),
    "cut short": ("a.safetensors", cut, ["is not complete, it lacks 100 of", "download it again"]),
    "a cut header": ("a.pt", cut_header, ["is cut off within its header", "download it again"]),
    "an empty file": ("a.safetensors", text(b""), ["is empty"]),
    "a pointer of Git LFS": ("a.safetensors", text(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), ["git lfs pull"]),
    "a web page": ("a.safetensors", text(b"<!doctype html><title>404</title>" * 9), ["is a web page"]),
    "a web page as .pt": ("a.pt", text(b"<!doctype html><title>404</title>" * 9), ["is a web page"]),
    "eight bytes": ("a.safetensors", text(b"\x10" + bytes(7)), ["its beginning is damaged"]),
    "a header that is no mapping": ("a.safetensors", text(b"\x02" + bytes(7) + b"{}"[:1] + b"]"), ["has a damaged header"]),
    "a folder": ("a.safetensors", lambda path, tensors: path.mkdir(), ["is a folder"]),
    "a pipe": ("a.safetensors", lambda path, tensors: os.mkfifo(path), ["is a pipe or a device"]),
    "a dangling link": ("a.safetensors", lambda path, tensors: path.symlink_to("gone"), ["No such file", "it is a link to gone"]),
    "a looping link": ("a.safetensors", looping, ["cannot be read (Too many levels of symbolic links"]),
    "no such file": ("a.safetensors", lambda path, tensors: None, ["cannot be read (No such file or directory)"]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "write", "said"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_source_that_cannot_be_used_is_refused_in_a_sentence(
    convert_main, tensors, tmp_path, monkeypatch, capsys, name, write, said
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name, tensors)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert convert_main([name, "--model", "tiny"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert name in error
    assert [word for word in said if word not in error] == [], error
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_gives_the_systems_reason(convert_main, tensors, tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    path.chmod(0)
    assert convert_main([str(path), "--model", "tiny"]) == 2
    assert "cannot be read (Permission denied)" in capsys.readouterr().err


def test_a_slider_with_nan_is_refused_before_it_is_sampled(tensors, tmp_path):
    key = min(k for k in tensors if k.endswith("up.weight"))
    path = own(tmp_path / "a.safetensors", {**tensors, key: torch.full_like(tensors[key], float("nan"))})
    with pytest.raises(InputError, match=f"{key} contains NaN"):
        check_slider(path, SDXL_FAMILY.weightless_denoiser("tiny"), SDXL_FAMILY)
    with pytest.raises(InputError, match=f"{key} contains NaN"):
        open_slider(path, build_narrow_sdxl().unet, SDXL_FAMILY)


@pytest.mark.parametrize("ends", [("up.weight",), ("down.weight",), ("up.weight", "down.weight")])
def test_a_slider_that_does_nothing_is_converted_with_a_note(convert_main, tensors, tmp_path, capsys, ends):
    zero = {key: torch.zeros_like(t) if key.endswith(ends) else t for key, t in tensors.items()}
    save_file(zero, tmp_path / "a.safetensors")
    assert convert_main([str(tmp_path / "a.safetensors"), "--model", "tiny"]) == 0
    assert "note: all its weights are zero where that matters" in capsys.readouterr().out


@pytest.mark.parametrize("algo", ["loha", "lokr", "glora", "full"])
def test_an_untrained_slider_of_each_algorithm_is_known_to_do_nothing(convert_main, tmp_path, capsys, algo):
    from sliders.adaptors.network import AdaptorNetwork

    unet = build_narrow_sdxl().unet
    network = AdaptorNetwork(unet, Network(**SETTINGS, algo=algo))
    network.remove()
    found = {f"{file_key(p)}.{k}": t.contiguous() for p, parts in network.tensors().items() for k, t in parts.items()}
    save_file(found, tmp_path / "a.safetensors")
    assert convert_main([str(tmp_path / "a.safetensors"), "--model", "tiny"]) == 0
    assert "changes nothing at any multiplier" in capsys.readouterr().out


def test_a_file_gives_shapes_and_metadata_without_the_weights(tensors, tmp_path):
    file = open_weights(own(tmp_path / "a.bin", tensors), "a.bin:")
    assert {key: stored.shape for key, stored in file.stored.items()} == {k: tuple(t.shape) for k, t in tensors.items()}
    assert file.metadata["ss_v2"] == "False"


def test_help_and_guide_name_model_for_the_demos_sliders(convert_main, capsys):
    with pytest.raises(SystemExit):
        convert_main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "as the demo's do; also for --calibrate" in shown


def test_nothing_is_written_beside_a_source(convert_main, tensors, tmp_path):
    save_file(tensors, tmp_path / "a.safetensors")
    before = everything_in(tmp_path)
    assert convert_main([str(tmp_path / "a.safetensors"), "--model", "tiny", "--alpha", "-1"]) == 2
    assert everything_in(tmp_path) == before
