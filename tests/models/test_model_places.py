"""Files are told by their content, folders may hold any variant, and what cannot be read is refused with the reason."""

import json
import os
import shutil

import pytest
import torch
from narrow_files import FAMILIES, change_json, check, copied, load, pipeline, save, state_of, worst_difference
from safetensors.torch import load_file, save_file
from sliders.system.errors import InputError
from sliders.system.weight_files import open_weights

posix = pytest.mark.skipif(os.name != "posix", reason="this system has no such links")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return save(tmp_path_factory.mktemp("file") / "model.safetensors", state_of("sd1"))


@pytest.mark.parametrize("name", ["m.ckpt", "m.SAFETENSORS", "m.sft", "m", "m.bin"])
def test_a_safetensors_file_under_any_name(narrow_folders, file, tmp_path, name):
    path = shutil.copy(file, tmp_path / name)
    assert worst_difference(load("sd1", path, narrow_folders["sd1"]), "sd1") == 0


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["m.safetensors", "m.CKPT", "m.pt", "m.bin"])
def test_a_pickle_under_any_name(narrow_folders, tmp_path, name, zipped):
    torch.save({"state_dict": state_of("sd1"), "epoch": 3}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert worst_difference(load("sd1", tmp_path / name, narrow_folders["sd1"]), "sd1") == 0


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


CONTENTS = {  # name: (suffix, from the bytes of a sound file to others, words)
    "cut off": (".safetensors", lambda b: b[:-5000], "is not complete, it lacks 5,000 of"),
    "cut off in the header": (".ckpt", lambda b: b[:600], "cut off within its header"),
    "damaged header": (".safetensors", lambda b: b[:9] + b"%" + b[10:], "damaged header"),
    "empty": (".safetensors", lambda b: b"", "is empty"),
    "GGUF": (".safetensors", lambda b: b"GGUF" + b, "is a GGUF file"),
    "Git LFS": (".safetensors", lambda b: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "web page": (".ckpt", lambda b: b"<!DOCTYPE html><html>", "is a web page"),
    "text": (".ckpt", lambda b: b"hello" * 99, "neither a .safetensors file nor a checkpoint"),
    "zeros": (".safetensors", lambda b: bytes(4096), "its beginning is damaged"),
    "damaged zip": (".ckpt", lambda b: b"PK\x03\x04" + bytes(99), "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_other_content_is_refused_with_its_reason(file, tmp_path, name):
    suffix, change, words = CONTENTS[name]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(change(file.read_bytes()))
    with pytest.raises(InputError, match=words) as error:
        check("sd1", path)
    assert len(str(error.value).splitlines()) == 1


def test_gaps_between_weights_are_refused(file, tmp_path):
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop(next(key for key, value in header.items() if value["data_offsets"][0] > 0))
    text = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    with pytest.raises(InputError, match="has a damaged header"):
        open_weights(tmp_path / "m.safetensors", "x")


def test_code_in_a_pickle_is_named_and_never_run(tmp_path, capsys):
    torch.save({"state_dict": state_of("sd1"), "callbacks": Code()}, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"more than weights \(builtins.print\).*never run"):
        check("sd1", tmp_path / "m.safetensors")
    assert "must not run" not in capsys.readouterr().out


@posix
@pytest.mark.parametrize(("target", "words"), [
    ("nowhere", "No such file or directory; it is a link to nowhere"), ("m.safetensors", "[Ss]ymbolic links"),
    ("/dev/null", "a pipe or a device"),
])  # fmt: skip
def test_links_that_lead_nowhere_are_refused_with_the_systems_reason(tmp_path, target, words):
    (tmp_path / "m.safetensors").symlink_to(target)
    with pytest.raises(InputError, match=words):
        check("sd1", tmp_path / "m.safetensors")


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="permissions do not bind root")
def test_a_file_without_permissions_is_refused(file, tmp_path):
    path = shutil.copy(file, tmp_path / "m.safetensors")
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        check("sd1", path)


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\): check the path"):
        check("sd1", tmp_path / "m.safetensors")


def half_precision_names(folder, *parts):
    for path in [p for part in parts for p in (folder / part).glob("*.safetensors")]:
        save_file({k: v.half() for k, v in load_file(path).items()}, path.with_suffix(".fp16.safetensors"))
        path.unlink()


def sharded(folder, *parts):
    for part in parts:
        path = next((folder / part).glob("*.safetensors"))
        state = load_file(path)
        names = {key: f"{path.stem}-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(state)}
        for name in set(names.values()):
            save_file({k: v for k, v in state.items() if names[k] == name}, path.with_name(name))
        path.with_name(path.name + ".index.json").write_text(json.dumps({"weight_map": names}))
        path.unlink()


def pickled(folder, *parts):
    for path in [p for part in parts for p in (folder / part).glob("*.safetensors")]:
        torch.save(
            load_file(path), path.with_name(path.stem.replace("model", "pytorch_model", path.stem == "model") + ".bin")
        )
        path.unlink()


def rewritten(folder, part, *pairs):
    path = next((folder / part).glob("*.safetensors"))
    state = load_file(path)
    for old, new in pairs:
        state = {k.replace(old, new): v for k, v in state.items()}
    save_file(state, path, metadata={"format": "pt"})


PARTS = ("unet", "vae", "text_encoder")
OLD_ATTENTION = ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn."))
FOLDERS = {  # name: (what is done to the folder, largest relative error of a weight)
    "as it is": (lambda f: None, 0),
    "fp16": (lambda f: half_precision_names(f, *PARTS), 1e-3),
    "mixed": (lambda f: half_precision_names(f, "unet"), 1e-3),
    "several files": (lambda f: sharded(f, *PARTS), 0),
    "pickles": (lambda f: pickled(f, *PARTS), 0),
    "pickles beside": (lambda f: pickled(f, "vae"), 0),
    "old attention": (lambda f: rewritten(f, "vae", *OLD_ATTENTION), 0),
    "text_model": (lambda f: rewritten(f, "text_encoder", ("encoder.layers", "text_model.encoder.layers")), 0),
    "upper case": (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").rename(f / "vae/diffusion_pytorch_model.SAFETENSORS"), 0),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_any_variant(narrow_folders, tmp_path, name, family):
    if family != "sd1" and name not in ("as it is", "fp16", "mixed"):
        pytest.skip("the same code for all")
    change, error = FOLDERS[name]
    folder = copied(narrow_folders[family], tmp_path / "model")
    change(folder)
    check(family, folder)
    assert worst_difference(load(family, folder), family) <= error


def lacks_a_weight(folder, part):
    path = next((folder / part).glob("*.safetensors"))
    state = load_file(path)
    state.pop(next(k for k in state if "layer_norm1" in k or "conv_out" in k or "conv2" in k))
    save_file(state, path)


def index_without(folder, name):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, name: [None, None]}))


INCOMPLETE = {  # name: (what is done to the folder, words)
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "lacks tokenizer/vocab.json"),
    "no second tokenizer": (lambda f: shutil.rmtree(f / "tokenizer_2"), "lacks tokenizer_2/vocab.json"),
    "no weights": (lambda f: next((f / "unet").glob("*.safetensors")).unlink(), "contains no weights of its UNet"),
    "no encoder's weights": (lambda f: next((f / "text_encoder_2").glob("*.safetensors")).unlink(), "no weights of its second text"),
    "no VAE": (lambda f: shutil.rmtree(f / "vae"), "contains no readable vae/config.json"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "no readable scheduler/scheduler_config.json"),
    "a text encoder's weight": (lambda f: lacks_a_weight(f, "text_encoder"), r"lacks 1 weight\(s\) of its text encoder"),
    "a UNet's weight": (lambda f: lacks_a_weight(f, "unet"), r"lacks 1 weight\(s\) of its UNet"),
    "damaged config": (lambda f: (f / "unet/config.json").write_text("{"), "no readable unet/config.json"),
    "wrong config": (lambda f: change_json(f / "vae/config.json", norm_num_groups=7), "its VAE cannot be loaded"),
    "other VAE": (lambda f: change_json(f / "model_index.json", vae=["diffusers", "AutoencoderTiny"]), "vae is AutoencoderTiny"),
    "no encoder": (lambda f: index_without(f, "text_encoder"), "has no text encoder in its model_index.json"),
    "cut off": (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"\x10" + bytes(7) + b"{}"), "cut off within"),
    "broken link": (lambda f: [next((f / "vae").glob("*.safetensors")).unlink(),
                               (f / "vae/diffusion_pytorch_model.safetensors").symlink_to("gone")], "is a link to gone"),
}  # fmt: skip


@pytest.mark.parametrize("name", INCOMPLETE)
def test_incomplete_folders_are_refused_before_loading(narrow_folders, tmp_path, name):
    change, words = INCOMPLETE[name]
    folder = copied(narrow_folders["sdxl"], tmp_path / "model")
    change(folder)
    with pytest.raises(InputError, match=words) as error:
        check("sdxl", folder)
    assert str(folder) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_scales_in_a_folder_are_multiplied(narrow_folders, tmp_path):
    folder = copied(narrow_folders["sdxl"], tmp_path / "model")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    key = "mid_block.attentions.0.proj_in.weight"
    factor = state[key].abs().max() / 400
    save_file(state | {key: (state[key] / factor).to(torch.float8_e4m3fn), f"{key[:-6]}weight_scale": factor}, path)
    assert 0 < worst_difference(load("sdxl", folder), "sdxl") < 0.05


def test_offline_a_single_file_names_the_key_that_helps(tmp_path, monkeypatch):
    from sliders.models.folders import json_folder

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        InputError, match=r"x needs the JSON and tokenizer files of a/b.*HF_HUB_OFFLINE.*pretrained_model.config"
    ):
        json_folder("a/b", "x")


def test_offline_a_hub_model_that_is_not_cached_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.HF_HUB_CACHE", str(tmp_path), raising=False)
    with pytest.raises(InputError, match="someone/model: it is not in the local cache, and HF_HUB_OFFLINE is set"):
        load("sd1", "someone/model")


def test_the_model_is_the_one_that_diffusers_loads(narrow_folders):
    for family in FAMILIES:
        pipe = type(pipeline(family)).from_pretrained(narrow_folders[family], safety_checker=None)
        model = load(family, narrow_folders[family])
        for name in pipe.components:
            if name in ("unet", "vae", "text_encoder", "text_encoder_2"):
                found, wanted = getattr(model.pipe, name), getattr(pipe, name)
                assert all(torch.equal(found.state_dict()[k], v) for k, v in wanted.state_dict().items())
                assert type(found) is type(wanted)
                if name.startswith("text"):
                    assert found.config._attn_implementation == wanted.config._attn_implementation


@pytest.mark.parametrize("first", [0x80, 0x50, 0x47, 0x3C])
def test_the_length_of_a_header_may_begin_like_another_format(file, tmp_path, first):
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    spaces = (first - length) % 256
    path = tmp_path / "m.safetensors"
    path.write_bytes((length + spaces).to_bytes(8, "little") + raw[8 : 8 + length] + b" " * spaces + raw[8 + length :])
    assert path.read_bytes()[0] == first
    assert open_weights(path, "x").stored == open_weights(file, "x").stored
