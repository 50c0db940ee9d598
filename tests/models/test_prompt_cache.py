"""Prompts of FLUX.2 [klein] and Z-Image that an earlier run encoded, and text encoders that are not loaded."""

import gc
import os
import shutil
import stat
import weakref

import pytest
import torch
from conftest import script_main, write_experiment
from safetensors.torch import load_file, save_file
from sliders.config.schema import PretrainedModel
from sliders.models import FAMILIES
from sliders.models.flow import prompt_cache
from sliders.models.flow.prompt_cache import PromptCache, cache_folder
from sliders.models.flow.text_encoder import StoredEncoder, _fits, release, stream
from sliders.models.flux2.narrow import build_narrow_klein
from sliders.models.zimage.narrow import build_narrow_zimage

PROMPTS = ["a disc", "", "a bright disc on a table, seen from above"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    build_narrow_klein().save_pretrained(root / "flux2")
    build_narrow_zimage().save_pretrained(root / "zimage")
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLIDERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prompt_cache, "LEFT_FREE", 0)
    return tmp_path / "cache"


@pytest.fixture
def loads(monkeypatch):
    """The encoders that are loaded."""
    found, load = [], StoredEncoder.load

    def watched(self):
        found.append(self.folder)
        return load(self)

    monkeypatch.setattr(StoredEncoder, "load", watched)
    return found


def load(family, folder, dtype=torch.float32):
    return FAMILIES[family].load(PretrainedModel(name_or_path=str(folder)), dtype)


def encoded(family, folder, prompts=PROMPTS, dtype=torch.float32):
    model = load(family, folder, dtype)
    found = model.encode_prompts(prompts, "cpu")
    model.free_text_encoders()
    return {prompt: embeds.tokens for prompt, embeds in found.items()}


@pytest.mark.parametrize("family", ["flux2", "zimage"])
def test_the_second_run_loads_no_text_encoder_and_gets_the_same(folders, cache, loads, capsys, family):
    first = encoded(family, folders / family)
    assert len(loads) == 1 and len([*cache.iterdir()]) == len(PROMPTS)
    again = encoded(family, folders / family)
    assert len(loads) == 1
    assert f"3 of 3 prompts are encoded already, in {cache}" in capsys.readouterr().out
    for prompt in PROMPTS:
        assert torch.equal(again[prompt], first[prompt]) and again[prompt].dtype == first[prompt].dtype
    tiny = encoded(family, "tiny")
    assert all(torch.equal(tiny[prompt], first[prompt]) for prompt in PROMPTS)
    more = encoded(family, folders / family, [*PROMPTS, "a new one"])
    assert len(loads) == 2 and [*more] == [*PROMPTS, "a new one"]


@pytest.mark.parametrize("family", ["flux2", "zimage"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_known_by_its_encoder_before_that_is_loaded(folders, family, dtype):
    model = load(family, folders / family, dtype)
    before = model.fingerprint()
    assert model.pipe.text_encoder is None
    assert before == FAMILIES[family].load(PretrainedModel(name_or_path="tiny"), dtype).fingerprint()


def with_changed_weights(folder):
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"] += 0.1
    save_file(tensors, path, {"format": "pt"})


def with_another_template(folder):
    path = folder / "tokenizer" / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "model"))


@pytest.mark.parametrize("change", [with_changed_weights, with_another_template])
def test_another_encoder_or_template_is_not_taken_for_the_same(folders, cache, loads, tmp_path, change):
    shutil.copytree(folders / "zimage", tmp_path / "other")
    first = encoded("zimage", folders / "zimage")
    change(tmp_path / "other")
    other = encoded("zimage", tmp_path / "other")
    assert len(loads) == 2
    assert all(not torch.equal(first[p], other[p]) for p in PROMPTS)


def test_a_moved_model_is_the_same_and_another_precision_is_not(folders, cache, loads, tmp_path):
    shutil.copytree(folders / "zimage", tmp_path / "moved")
    encoded("zimage", folders / "zimage")
    encoded("zimage", tmp_path / "moved")
    assert len(loads) == 1
    assert encoded("zimage", folders / "zimage", dtype=torch.bfloat16)[""].dtype == torch.bfloat16
    assert len(loads) == 2


DAMAGE = {
    "cut off": lambda content: content[:-5],
    "a bit flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "empty": lambda content: b"",
    "another program's": lambda content: b"PK\x03\x04" + content,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_files_are_named_and_written_anew(folders, cache, loads, capsys, damage):
    first = encoded("zimage", folders / "zimage")
    path = min(cache.iterdir())
    content = path.read_bytes()
    path.write_bytes(damage(content))
    again = encoded("zimage", folders / "zimage")
    assert f"note: {path} is damaged or of another program" in capsys.readouterr().out
    assert len(loads) == 2
    assert path.read_bytes() == content
    assert all(torch.equal(again[p], first[p]) for p in PROMPTS)


def test_what_was_not_used_for_longest_makes_room(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prompt_cache, "LEFT_FREE", 0)
    tokens = torch.ones(100)
    cache = PromptCache(tmp_path)
    for age, key in enumerate("abc"):
        cache.write(key, tokens)
        os.utime(tmp_path / f"{key}.prompt", (1000 + age,) * 2)
    size = (tmp_path / "a.prompt").stat().st_size
    monkeypatch.setattr(prompt_cache, "LIMIT", 3 * size)
    cache = PromptCache(tmp_path)
    assert torch.equal(cache.read("a"), tokens)
    cache.write("d", tokens)
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "c", "d"}
    cache.write("e", tokens)
    assert capsys.readouterr().out == ""
    cache.write("f", tokens)  # all others are this run's own
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "d", "e"}
    assert f"{tmp_path} has no room for more encoded prompts" in capsys.readouterr().out
    cache.write("g", tokens)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("obstacle", ["a full disk", "a file", "no folder"])
def test_without_a_cache_prompts_are_encoded_all_the_same(folders, cache, loads, monkeypatch, capsys, obstacle):
    if obstacle == "a full disk":
        monkeypatch.setattr(prompt_cache, "LEFT_FREE", 2**60)
    elif obstacle == "a file":
        cache.write_text("x")
    else:
        monkeypatch.setenv("SLIDERS_CACHE", "")
    assert len(encoded("zimage", folders / "zimage")) == len(encoded("zimage", folders / "zimage")) == 3
    assert len(loads) == 2
    assert capsys.readouterr().out.count("note: ") == (0 if obstacle == "no folder" else 2)


def test_files_are_complete_and_not_executable(folders, cache):
    encoded("zimage", folders / "zimage")
    assert all(path.suffix == ".prompt" for path in cache.iterdir())
    assert not any(path.stat().st_mode & stat.S_IXUSR for path in cache.iterdir())


def test_the_folder_is_the_users_unless_another_is_chosen(monkeypatch, tmp_path):
    monkeypatch.delenv("SLIDERS_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "fractional-sliders"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "fractional-sliders"
    monkeypatch.setenv("SLIDERS_CACHE", "~/x")
    assert cache_folder() == tmp_path / "x"


@pytest.mark.parametrize("family", ["flux2", "zimage"])
def test_an_encoder_that_stays_in_main_memory_encodes_the_same(folders, family):
    """As for a GPU that is too small for it; here both are the CPU."""
    wanted = encoded(family, folders / family)
    model = load(family, folders / family)
    model.pipe.text_encoder = model._stored.load()
    stream(model.pipe.text_encoder, "cpu", torch.float32)
    assert all(p.device.type == "meta" for p in model.pipe.text_encoder.parameters())
    found = {prompt: model._encode(prompt, torch.device("cpu")).tokens for prompt in PROMPTS}
    assert all(torch.equal(found[prompt], wanted[prompt]) for prompt in PROMPTS)
    release(model.pipe.text_encoder)
    assert not any(hasattr(module, "_hf_hook") for module in model.pipe.text_encoder.modules())


@pytest.mark.parametrize("streamed", [False, True])
def test_an_encoder_is_freed_at_once(folders, streamed):
    """Its memory is needed for the denoiser, before the garbage collector may run."""
    model = load("zimage", folders / "zimage")
    model.encode_prompts(["a"], "cpu")
    if streamed:
        stream(model.pipe.text_encoder, "cpu", torch.float32)
    freed = weakref.ref(model.pipe.text_encoder)
    gc.disable()
    try:
        model.free_text_encoders()
        assert freed() is None
    finally:
        gc.enable()


def test_a_gpu_that_is_too_small_is_known_by_its_free_memory():
    assert _fits(8 * 10**9, 12 * 10**9)
    assert not _fits(8 * 10**9, 8 * 10**9)


def test_a_run_from_cached_prompts_is_the_same_run(folders, cache, loads, tmp_path):
    main, files = script_main("train_lora-scale-flux2"), []
    for name in ("first", "second"):
        argv = write_experiment(
            tmp_path, pretrained_model={"name_or_path": str(folders / "flux2")}, network={"training_method": "full"},
            save={"name": name}, train={"iterations": 1}, prompts=[{"target": "a disc", "resolution": 64}],
        )  # fmt: skip
        assert main(argv) == 0
        stem = f"{name}_klein_alpha2.0_rank4_full"
        files.append(load_file(tmp_path / "models" / stem / f"{stem}_last.safetensors"))
    assert len(loads) == 1
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])
