"""The sample command: pictures, grids and page of a trained slider, and how it reports bad input."""

import io
import json
import shutil
import weakref
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import browser
from conftest import make_scale_folders, write_experiment
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from experiments import everything_in
from networks import random_network
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sliders import __version__
from sliders.config.schema import SAMPLERS, PretrainedModel
from sliders.config.settings import load_settings
from sliders.data.dataset import ScaleFolders
from sliders.formats.metadata import slider_metadata
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.narrow import build_narrow_sdxl
from sliders.sample.output import sampler_name
from sliders.sample.plan import make_plan, trained_size
from sliders.sample.sampling import Row, Sampling, pixels_per_batch, rows_within, sample
from sliders.sample.settings import load_sample_settings
from sliders.system.errors import InputError
from sliders.train.runs import run_all

SMALL = ("--device", "cpu", "--steps", "2", "--width", "64", "--height", "64")


@pytest.fixture(scope="module")
def slider(tmp_path_factory):
    """A slider of the tiny model, trained with a high learning rate for a strong effect."""
    root = tmp_path_factory.mktemp("slider")
    data = make_scale_folders(root / "data", folders=("low", "middle", "high"))
    flags = ["--folders", "low, middle, high", "--scales", "-1, 0.5, 1", "--iterations", "6", "--lr", "0.02"]
    (report,) = run_all(load_settings(write_experiment(root, flags=flags, data=data))[0])
    return report.path


@pytest.fixture(scope="module")
def sampled(sample_main, slider, tmp_path_factory):
    """The output folder of one command: a template that expands to two prompts, and a prompt that names only another slider."""
    root = tmp_path_factory.mktemp("sampled")
    other = root / "loras" / "deeper" / "other.safetensors"
    other.parent.mkdir(parents=True)
    shutil.copy(slider, other)
    argv = [
        "--model", "tiny", "--slider", str(slider), "--lora_dir", str(root / "loras"), "--out", str(root / "out"),
        "--prompt", "a {red|blue} disc {<slider:0>|<slider:-1>|<slider:1>}", "x <lora:other:2>", "--negative", "grey, blurred",
        "--seeds", "7,", "8", "--batch_size", "5", "--guidance", "3", *SMALL,
    ]  # fmt: skip
    assert sample_main(argv) == 0
    return root / "out"


def test_one_command_makes_pictures_grids_and_a_page(sampled):
    names = {f"{n:02d}_seed{s}_x{m}.png" for n in (1, 2) for s in (7, 8) for m in (-1, 0, 1)}
    names |= {f"03_seed{s}_x{m}.png" for s in (7, 8) for m in ("-1", "0", "0.5", "1", "1.5")}
    names |= {f"{n:02d}_grid.png" for n in (1, 2, 3)} | {"index.html"}
    assert {p.name for p in sampled.iterdir()} == names
    grid = Image.open(sampled / "01_grid.png")
    assert grid.width > 3 * 64
    assert 2 * 64 < grid.height < 3 * 64
    text = (sampled / "index.html").read_text(encoding="utf-8")
    assert text.count('<img src="data:image/webp;base64,') == 22
    for words in ("a red disc", "a blue disc", "mean absolute difference", "1 − SSIM", "edge-map difference"):
        assert words in text


def test_a_web_ui_reads_prompt_seed_and_lora_back(sampled, slider):
    with safe_open(slider, framework="pt") as file:
        digest = file.metadata()["sshs_model_hash"][:12]
    assert Image.open(sampled / "02_seed8_x-1.png").text["parameters"] == (
        f"a blue disc <lora:{slider.stem}:-1>\nNegative prompt: grey, blurred\nSteps: 2, Sampler: DDIM, CFG scale: 3, Seed: 8, "
        f'Size: 64x64, Model: tiny, RNG: CPU, Lora hashes: "{slider.stem}: {digest}", Version: fractional-sliders {__version__}'
    )


def test_a_prompt_that_names_only_another_slider_shows_the_slider_beside_it(sampled, slider):
    parameters = Image.open(sampled / "03_seed7_x0.5.png").text["parameters"]
    assert parameters.startswith(f"x <lora:{slider.stem}:0.5> <lora:other:2>\n")
    pictures = [np.asarray(Image.open(sampled / f"03_seed7_x{m}.png"), dtype=float) for m in ("-1", "0", "1")]
    assert min(np.abs(a - b).mean() for a, b in pairwise(pictures)) > 1


def test_the_page_of_a_run_scrubs_through_its_pictures(sampled, tmp_path):
    """In a browser, with the keyboard: three multipliers show three pictures, and going back shows the first again."""
    from selenium.webdriver.common.keys import Keys

    with browser(tmp_path / "profile") as driver:
        driver.get((sampled / "index.html").as_uri())
        control, frame = driver.find_element("id", "shot-1-1"), driver.find_element("css selector", ".frame")
        seen = []
        for key in (Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.HOME):
            control.send_keys(key)
            shot = Image.open(io.BytesIO(frame.screenshot_as_png)).convert("RGB")
            seen.append(np.asarray(shot.crop((10, 10, 200, 200)), dtype=float))  # without the corner of the button
    first, second, third, again = seen
    assert min(np.abs(a - b).mean() for a, b in ((first, second), (second, third), (first, third))) > 2
    assert np.abs(first - again).mean() < 0.5


def test_a_prompt_that_names_no_slider_is_shown_at_the_trained_multipliers(sample_main, slider, tmp_path):
    argv = ["--model", "tiny", "--slider", str(slider), "--out", str(tmp_path / "o"), "--device", "cpu"]
    assert sample_main([*argv, "--prompt", "a disc", "--seeds", "1", "--steps", "1"]) == 0
    assert {p.name for p in (tmp_path / "o").glob("01_seed*")} == {
        f"01_seed1_x{m}.png" for m in ("-1", "0", "0.5", "1", "1.5")
    }
    assert Image.open(tmp_path / "o" / "01_seed1_x1.png").size == (64, 64)  # as trained


def buckets(*counts):
    found = {str(i): {"resolution": size, "count": n} for i, (size, n) in enumerate(counts)}
    return {"ss_bucket_info": json.dumps({"buckets": found}), "modelspec.resolution": "512x512"}


@pytest.mark.parametrize(
    ("metadata", "size"),
    [
        (buckets(([1024, 1024], 2), ([832, 1216], 3)), (832, 1216)),
        (buckets(), (512, 512)),
        (buckets(([0, 7], 1)), (512, 512)),
        (buckets((["a"], None)), (512, 512)),
        ({"ss_bucket_info": "no JSON"}, (1024, 1024)),
        ({"ss_bucket_info": "[]", "modelspec.resolution": "768x640"}, (768, 640)),
        ({}, (1024, 1024)),
    ],
)
def test_without_width_the_pictures_have_the_size_of_most_training_images(metadata, size):
    assert trained_size(metadata, SDXL_FAMILY) == size


def test_the_sample_command_reads_the_image_size_from_the_slider(tmp_path):
    """Most of the images are upright."""
    data = make_scale_folders(tmp_path / "data", ("low", "high"), names=("a", "b"), size=(96, 64))
    make_scale_folders(tmp_path / "data", ("low", "high"), names=("c", "d", "e"), size=(64, 96))
    argv = write_experiment(tmp_path, flags=["--folders", "low, high", "--scales", "0, 1"], data=data,
                            prompts=[{"target": "", "resolution": 256}])  # fmt: skip
    (settings,), _ = load_settings(argv)
    found = ScaleFolders.find(settings.data, 32)
    metadata = slider_metadata(settings, found, SDXL_FAMILY, stem="s", steps=1, started=0.0, prediction="epsilon")
    assert trained_size(metadata, SDXL_FAMILY) == found.fitted_size(found.names.index("c"), 256)
    assert trained_size(metadata, SDXL_FAMILY)[0] < trained_size(metadata, SDXL_FAMILY)[1]


@pytest.fixture(scope="module")
def tiny():
    model = SDXL_FAMILY.load(PretrainedModel(name_or_path="tiny"), torch.float32)
    return model, model.encode_prompts(["a", "b", ""], "cpu")


@pytest.fixture
def networks(tiny):
    """Two sliders with random weights on one UNet, removed afterwards."""
    found = [random_network(tiny[0].denoiser), random_network(tiny[0].denoiser, "lierla", "selfattn")]
    yield found
    for network in reversed(found):
        network.remove()


@pytest.mark.parametrize("sampler", [None, *SAMPLERS])
def test_batched_multipliers_equal_one_by_one(tiny, networks, sampler):
    model, embeds = tiny
    rows = [Row(embeds[p], s, (m, 1 - m)) for p, s, m in (("a", 1, 0.0), ("a", 1, 2.0), ("b", 2, 0.67))]
    sampling = {"width": 64, "height": 64, "steps": 3, "guidance": 3.0, "sampler": sampler, "from_step": 1}
    together = list(sample(model, networks, rows, embeds[""], Sampling(**sampling)))
    for row, picture in zip(rows, together, strict=True):
        (alone,) = sample(model, networks, [row], embeds[""], Sampling(**sampling))
        assert (alone - picture).abs().max() < 1e-4
    assert (together[1] - together[0]).abs().max() > 1e-3


def test_a_sampler_does_not_depend_on_the_models_own_scheduler():
    """Tested with schedulers that have every option that could be inherited, and with one that has none of them."""
    model = SDXL_FAMILY.load(PretrainedModel(name_or_path="tiny"), torch.float32)
    noise = {"beta_start": 0.001, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "steps_offset": 1,
             "timestep_spacing": "trailing"}  # fmt: skip
    odd = {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++", "solver_order": 3}
    promised = {
        "ddim": {"clip_sample": False, "set_alpha_to_one": False},
        "euler": {"use_karras_sigmas": False},
        "dpm++_2m": {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": False},
        "dpm++_2m_karras": {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
        "dpm++_2m_sde": {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "use_karras_sigmas": False},
        "unipc": {"solver_order": 2, "use_karras_sigmas": False},
    }
    owns = (
        EulerDiscreteScheduler(**noise),
        EulerDiscreteScheduler(**noise, use_karras_sigmas=True),
        DPMSolverMultistepScheduler(**noise, **odd),
        DDIMScheduler(**noise, clip_sample=True),
    )
    for own in owns:
        for name, (cls, _, _) in SAMPLERS.items():
            model.pipe.scheduler = own
            model.use_sampler(name)
            assert type(model.pipe.scheduler).__name__ == cls
            wanted = {**noise, **promised.get(name, {})}
            assert {key: model.pipe.scheduler.config[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        (EulerDiscreteScheduler(), "Euler"),
        (EulerDiscreteScheduler(use_karras_sigmas=True), "EulerDiscrete"),
        (EulerAncestralDiscreteScheduler(), "Euler a"),
        (DPMSolverMultistepScheduler(use_karras_sigmas=True), "DPM++ 2M Karras"),
        (DPMSolverMultistepScheduler(), "DPM++ 2M"),
        (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), "DPM++ 2M SDE"),
        (DDIMScheduler(clip_sample=False, set_alpha_to_one=False), "DDIM"),
        (LCMScheduler(), "LCM"),
    ],
)
def test_the_models_own_sampler_is_named_as_in_a_web_ui(own, shown):
    model = SimpleNamespace(scheduler=own)
    assert sampler_name(SimpleNamespace(sampler=None), model) == shown


def test_a_slider_that_joins_late_leaves_the_first_steps_alone(tiny, networks):
    model, embeds = tiny
    pictures = {
        from_step: next(sample(model, networks, [Row(embeds["a"], 1, (m, m))], embeds[""],
                               Sampling(64, 64, steps=6, guidance=2.0, from_step=from_step)))
        for from_step, m in ((0, 2.0), (3, 2.0), (5, 2.0), (1, 0.0))
    }  # fmt: skip
    distance = {f: (picture - pictures[1]).abs().mean().item() for f, picture in pictures.items()}
    assert distance[0] > distance[3] > distance[5] > 0


@pytest.mark.parametrize(("zeros", "negative"), [(True, None), (False, None), (False, "")])
def test_the_command_makes_the_pictures_of_diffusers_without_a_negative_prompt(
    sample_main, slider, tmp_path, monkeypatch, zeros, negative
):
    """SDXL-base's pipeline replaces an empty negative prompt by zeros; others encode it as text."""
    pipe = build_narrow_sdxl()
    pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    how = {"num_inference_steps": 3, "guidance_scale": 9.0, "width": 64, "height": 64, "latents": noise}
    wanted = pipe("a disc", negative_prompt=negative, output_type="np", **how).images[0]
    monkeypatch.setattr("sliders.models.sdxl.family.build_narrow_sdxl", lambda: pipe)
    argv = ["--model", "tiny", "--slider", str(slider), "--prompt", "a disc <slider:0>", "--seeds", "1", *SMALL]
    assert sample_main([*argv, "--steps", "3", "--guidance", "9", "--out", str(tmp_path / "o")]) == 0
    found = np.asarray(Image.open(tmp_path / "o" / "01_seed1_x0.png"), dtype=float) / 255
    assert np.abs(found - wanted).max() < 0.01


def test_one_note_lists_syntax_that_only_web_uis_understand(sample_main, slider, tmp_path, monkeypatch, capsys):
    def load(*_):
        raise InputError("loaded.")

    monkeypatch.setattr("sliders.models.sdxl.family.SDXLFamily.load", load)
    argv = ["--model", "tiny", "--slider", str(slider), "--out", str(tmp_path / "o"), *SMALL, "--prompt"]
    assert sample_main([*argv, "a (robe:1.3) BREAK {red|blue}", "--negative", "[grey]"]) == 2
    (note,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("note"))
    assert note.startswith("note: prompt weights") and note.endswith(": (robe:1.3), BREAK, [grey].")
    assert sample_main([*argv, "a robe"]) == 2
    assert "note" not in capsys.readouterr().out


def test_without_a_gpu_the_command_says_so_before_it_loads_anything(sample_main, slider, tmp_path, monkeypatch, capsys):
    def load(*_):
        assert "note: no CUDA GPU was found, so the CPU makes the pictures." in capsys.readouterr().out
        raise InputError("loaded.")

    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("sliders.models.sdxl.family.SDXLFamily.load", load)
    argv = ["--model", "tiny", "--slider", str(slider), "--prompt", "a", "--out", str(tmp_path / "o"), *SMALL]
    assert sample_main([*argv, "--device", "0"]) == 2
    assert capsys.readouterr().err == "error: loaded.\n"


@pytest.mark.parametrize(("memory", "rows"), [(8, (1, 5)), (12, (2, 8)), (23.6, (4, 16)), (141, (4, 16))])
def test_small_cards_get_smaller_batches(monkeypatch, memory, rows):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, int(memory * 2**30)))
    assert tuple(rows_within(pixels_per_batch("cuda:0"), side, side) for side in (1024, 512)) == rows
    assert rows_within(pixels_per_batch("cpu"), 1024, 1024) == 4


def test_the_batch_size_is_what_fits_or_what_the_flag_gives(slider, tmp_path):
    for words, rows in (([], 4), (["--batch_size", "3"], 3)):
        argv = ["--model", "tiny", "--slider", str(slider), "--prompt", "a", "--out", str(tmp_path / "out")]
        settings = load_sample_settings([*argv, "--width", "1024", "--height", "1024", "--device", "cpu", *words])
        assert make_plan(settings).sampling.batch_size == rows


def test_a_batch_that_does_not_fit_is_halved_and_gives_the_same_pictures(tiny, networks):
    """The UNet runs out of memory above four rows, in its second step. The sampler takes noise from each row's generator."""
    model, embeds = tiny
    rows = [Row(embeds["a"], seed, (m, 1 - m)) for seed in (1, 2, 3) for m in (0.0, 2.0)]
    sampling = Sampling(64, 64, steps=3, guidance=2.0, sampler="euler_a", from_step=1, batch_size=5)
    wanted, seen, left = list(sample(model, networks, rows, embeds[""], sampling)), [], []

    def full(module, args):
        seen.append(len(args[0]))
        assert not any(tensor() is not None for tensor in left)  # otherwise the smaller batch would have no more memory
        if len(args[0]) > 4 and seen[-2:] == [len(args[0])] * 2:
            left.append(weakref.ref(args[0]))
            raise torch.OutOfMemoryError

    hook = model.denoiser.register_forward_pre_hook(full)
    found = list(sample(model, networks, rows, embeds[""], sampling))
    hook.remove()
    assert left
    assert seen == [10] * 2 + [4] * 3 * 3  # a failed size is not tried again; guidance doubles the rows
    assert max((a - b).abs().max() for a, b in zip(found, wanted, strict=True)) < 1e-4


def test_a_single_picture_that_does_not_fit_ends_with_a_message(sample_main, slider, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("Tried to allocate 2 GiB")

    monkeypatch.setattr("sliders.sample.sampling._sample_latents", full)
    argv = ["--model", "tiny", "--slider", str(slider), "--prompt", "a", "--out", str(tmp_path / "o"), *SMALL]
    assert sample_main(argv) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    for words in ("64 × 64 px", "--width and --height", "close other programs that use the GPU"):
        assert words in error


# --- bad input


def no_slider_for_sdxl(path):
    keys = ("lora_unet_down_blocks_0_attentions_0_proj_in.alpha", "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha")
    save_file({key: torch.ones(()) for key in keys}, path)


def of_another_size(path, slider):
    with safe_open(slider, framework="pt") as file:
        metadata = file.metadata()
    wide = {k: torch.cat([t, t], 1) if k.endswith("lora_down.weight") else t for k, t in load_file(slider).items()}
    save_file(wide, path, metadata)


def with_value(path, slider, value):
    """A slider with one wrong value in its last tensor."""
    with safe_open(slider, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(slider)
    tensors[max(tensors)].flatten()[-1] = value
    save_file(tensors, path, metadata)


CASES = {
    "an unknown slider": (["--prompt", "a <lora:nobody:1>"], ["<lora:nobody:…>", "use probe_", "--lora_dir"]),
    "an unclosed brace": (["--prompt", "a {<slider:0>|<slider:1>"], ["--prompt", "character 3", "never closed", "}"]),
    "no seeds": (["--seeds"], ["--seeds was given without a value", "1, 2, 3"]),
    "blank seeds": (["--seeds", ""], ["--seeds", "contains no seed", "1, 2, 3"]),
    "a negative seed": (["--seeds", "-1"], ["--seeds", "'-1'", "1, 2, 3"]),
    "an unwritable folder": (["--out", "/proc/nowhere/x"], ["--out", "/proc", "choose another --out"]),
    "a file where the folder goes": (["--out", "taken"], ["--out", "taken", "is a file"]),
    "a folder in use": (["--out", "used"], ["--out", "used already contains files", "--overwrite"]),
    "another family": (["--slider", "sd1.safetensors"], ["sd1.safetensors", "1 of 2 keys", "lora_unet_down_blocks_0", "a LoRA for SDXL"]),
    "another size": (["--slider", "wide.safetensors"], ["wide.safetensors", "another size", "trained on"]),
    "no slider at all": (["--slider", "text.safetensors"], ["text.safetensors", "is not a .safetensors file"]),
    "a slider that is not there": (["--slider", "no.safetensors"], ["no.safetensors", "No such file", "check the path"]),
    "a model that is not there": (["--model", "no body/x:y"], ["error: --model: no body/x:y", "check it"]),
    "a folder that is no model": (["--model", "used"], ["error: --model: used", "model_index.json"]),
    "a model's config that is none": (["--model", "taken.safetensors", "--model_config", "used"], ["error: --model"]),
    "no folder of sliders": (["--lora_dir", "nowhere"], ["--lora_dir", "nowhere", "No such file or directory"]),
    "a slider that is a link to itself": (["--slider", "loop.safetensors"], ["loop.safetensors", "symbolic links"]),
    "a slider that is a link to nothing": (["--slider", "dangling.safetensors"], ["it is a link to gone"]),
    "a slider that is a folder": (["--slider", "used"], ["used", "is a folder, not a file"]),
    "NaN in a slider": (["--slider", "nan.safetensors"], ["nan.safetensors: lora_unet_", "contains NaN or infinite values"]),
    "infinity in a slider": (["--slider", "inf.safetensors"], ["inf.safetensors: lora_unet_", "contains NaN or infinite"]),
    "NaN in another slider": (
        ["--prompt", "a <slider:1> <lora:nan:1>", "--lora_dir", "."], ["nan.safetensors: lora_unet_", "NaN or infinite"]
    ),
    "wildcards in another encoding": (
        ["--wildcard_dir", "wild", "--prompt", "a __colour__ disc"], ["--wildcard_dir", "colour.txt", "save it as UTF-8"]
    ),
    "an unknown sampler": (["--sampler", "plms"], ["--sampler", "'plms'", "euler"]),
    "a slider that never joins": (["--from_step", "2"], ["--from_step", "not below --steps (2)"]),
    "a size no VAE can make": (["--width", "100"], ["--width", "100", "multiple of 8"]),
    "a mistyped flag": (["--seed", "1"], ["--seed", "did you mean --seeds"]),
    "too many pictures": (["--seeds", ", ".join(map(str, range(3000)))], ["pictures exceed the limit 4096", "--seeds"]),
    "a text for a number": (["--steps", "many"], ["--steps", "'many'"]),
}  # fmt: skip


@pytest.mark.parametrize(("words", "said"), CASES.values(), ids=CASES)
def test_bad_input_is_reported_before_anything_is_loaded_or_written(
    sample_main, slider, tmp_path, monkeypatch, capsys, words, said
):
    monkeypatch.chdir(tmp_path)
    no_slider_for_sdxl(tmp_path / "sd1.safetensors")
    of_another_size(tmp_path / "wide.safetensors", slider)
    with_value(tmp_path / "nan.safetensors", slider, float("nan"))
    with_value(tmp_path / "inf.safetensors", slider, float("-inf"))
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "dangling.safetensors").symlink_to("gone")
    (tmp_path / "text.safetensors").write_text("no")
    (tmp_path / "taken").write_text("")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.png").write_text("")
    (tmp_path / "wild").mkdir()
    (tmp_path / "wild" / "colour.txt").write_text("röt", encoding="cp1252")
    monkeypatch.setattr("sliders.models.sdxl.family.SDXLFamily.load", lambda *_: pytest.fail("loaded the model"))
    before = everything_in(tmp_path)
    argv = ["--model", "tiny", "--slider", str(slider), "--prompt", "a {<slider:0>|<slider:1>}", *SMALL, *words]
    assert sample_main(argv) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert error.startswith("error: ") and error.rstrip()[-1] in ".?"
    assert [word for word in said if word not in error] == [], error
    assert everything_in(tmp_path) == before
