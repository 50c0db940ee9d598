"""Ladders: the pictures of a prompt's levels, or of a slider, as a data set that the trainer takes as it is."""

import contextlib
import io
import json
import shlex
import shutil
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from browser import browser
from conftest import make_scale_folders, write_experiment
from experiments import everything_in
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sliders.config.schema import PretrainedModel
from sliders.config.settings import load_settings
from sliders.data.dataset import ScaleFolders
from sliders.formats.cards import CARD
from sliders.models import FAMILIES
from sliders.report.card import Card
from sliders.sample.rungs import Rung, rungs_and_scenes, split_levels
from sliders.sample.sampling import Row, Sampling, sample
from sliders.sample.settings import load_sample_settings
from sliders.system.errors import InputError
from sliders.train.runs import run_all

SMALL = ("--model", "tiny", "--device", "cpu", "--steps", "2", "--width", "64", "--height", "64")
LEVELS = "a {young|middle-aged|old} man"


def ladder_of(*argv: str, metadata=None):
    return rungs_and_scenes(load_sample_settings([*argv, "--ladder", "x", *SMALL]), metadata or {})


def folders_of(rungs: tuple[Rung, ...]) -> dict[str, float]:
    return {rung.folder: rung.scale for rung in rungs}


# --- what becomes a rung, and what a row


def test_levels_become_folders_and_further_braces_rows():
    rungs, scenes = ladder_of("--prompt", f"{LEVELS}, {{red|blue}}", "a {girlish|grown|old} woman")
    assert folders_of(rungs) == {"1_young": -1, "2_middle-aged": 0, "3_old": 1}
    assert [scene.text for scene in scenes] == ["a man, red", "a man, blue", "a woman"]
    assert [v.text for v in scenes[1].variants] == ["a young man, blue", "a middle-aged man, blue", "a old man, blue"]
    assert [v.text for v in scenes[2].variants] == ["a girlish woman", "a grown woman", "a old woman"]


@pytest.mark.parametrize(
    ("levels", "scales"),
    [(2, (-1, 1)), (3, (-1, 0, 1)), (4, (-2, -1, 1, 2)), (5, (-2, -1, 0, 1, 2))],
)
def test_levels_have_scales_around_0_unless_others_are_given(levels, scales):
    words = "|".join("abcde"[:levels])
    assert tuple(rung.scale for rung in ladder_of("--prompt", f"x {{{words}}}")[0]) == scales
    given = ", ".join(str(n + 0.5) for n in range(levels, 0, -1))
    assert [r.scale for r in ladder_of("--prompt", f"x {{{words}}}", "--multipliers", given)[0]] == [
        n + 0.5 for n in range(levels, 0, -1)
    ]


@pytest.mark.parametrize(
    ("prompt", "neutral", "caption"),
    [
        ("portrait, {young|old}, smiling", "", "portrait, smiling"),
        ("{young|old}, smiling", "", "smiling"),
        ("a man, {young|old}", "", "a man"),
        ("a man {when young|when old}, portrait", "", "a man, portrait"),
        ("a {young|old} man", "grown", "a grown man"),
        ("${c={red|blue}} a ${c} hat, {new|old}", "", "a red hat"),
    ],
)
def test_a_caption_is_the_prompt_without_its_level(prompt, neutral, caption):
    _, scenes = ladder_of("--prompt", prompt, "--neutral", neutral)
    assert scenes[0].text == caption


def test_levels_may_hold_other_sliders():
    rungs, (scene,) = ladder_of("--prompt", "a {new <lora:worn:-1>|old <lora:worn:1.5>} hat")
    assert [dict(v.multipliers) for v in scene.variants] == [{"worn": -1}, {"worn": 1.5}]
    assert [rung.folder for rung in rungs] == ["1_new_lora_worn_-1", "2_old_lora_worn_1_5"]


def test_names_of_folders_are_plain_and_differ():
    rungs, _ = ladder_of("--prompt", 'x {très vieux/old: "it"|tr&s vieux|old  |, y}')
    assert [rung.folder for rung in rungs] == ["1_très_vieux_old_it", "2_tr_s_vieux", "3_old", "4_y"]


def test_a_slider_has_a_folder_for_each_multiplier():
    trained = {"sliders.folders": json.dumps({"b": 2.0, "a": 0.5})}
    rungs, scenes = ladder_of("--slider", "S.safetensors", "--prompt", "a {red|blue} hat <lora:b:2>", metadata=trained)
    assert folders_of(rungs) == {"x0.5": 0.5, "x2": 2}
    assert [scene.text for scene in scenes] == ["a red hat", "a blue hat"]
    assert [dict(v.multipliers) for v in scenes[0].variants] == [{"S": 0.5, "b": 2}, {"S": 2, "b": 2}]
    rungs, _ = ladder_of(
        "--slider", "S.safetensors", "--prompt", "a", "--multipliers", "1, -1, 0, 1.0", metadata=trained
    )
    assert folders_of(rungs) == {"x-1": -1, "x0": 0, "x1": 1}


def card_text(readings) -> str:
    count = len(readings)
    return Card(
        scales=(0.5, 1.0, 2.0), multipliers=(-1.0, 0.0, 0.5, 1.0, 2.0, 4.0), readings=(readings,), ruler_error=0.1, order=(1.0,),
        roughness=(0.1,), foreign=(0.1,) * count, foreign_in_folders=0.1, recognised=(1.0, 1.0, 1.0, 1.0, 1.0, 0.0), images=6,
    ).as_json()  # fmt: skip


def test_shows_takes_the_multipliers_at_which_the_card_shows_the_scales():
    """By hand: 0.1 at 0.5 and 0.9 at 1 are 0.5 at 0.75; 1.5 lies half-way between 0.9 at 1 and 2.1 at 2."""
    metadata = {CARD: card_text((-0.4, 0.0, 0.1, 0.9, 2.1, 3.0))}
    rungs, (scene,) = ladder_of(
        "--slider", "S.safetensors", "--prompt", "a", "--shows", "1.5, 0.5, 0", metadata=metadata
    )
    assert folders_of(rungs) == {"shows0": 0, "shows0.5": 0.5, "shows1.5": 1.5}
    assert [v.multiplier("S") for v in scene.variants] == pytest.approx([0, 0.75, 1.5])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--prompt", "a man"], "--ladder: 'a man' has no levels, and there is no --slider: write the levels in braces"),
        (["--prompt", "a {2$$young|old} man"], "--ladder: '2$$young' in 'a {2$$young|old} man' is not a plain level"),
        (["--prompt", "a {{a|b}|old} man"], "is not a plain level: write the levels in the first braces"),
        (["--prompt", "a {old|old} man"], "has the same level twice"),
        (["--prompt", "a {old|young man"], "{ at character 3 that is never closed"),
        (["--prompt", "a {old|young}", "a {a|b|c}"], "'a {a|b|c}' has 3 levels, but the first prompt has 2"),
        (["--prompt", "a {old|young}", "{a|b}"], "--prompt: one prompt leaves no words for the captions, but others do"),
        (["--prompt", LEVELS, "--multipliers", "1, 2"], "--multipliers: 1, 2 does not give each of the 3 levels (young, middle-aged"),
        (["--prompt", LEVELS, "--multipliers", "1, 2, 1"], "a multiplier of its own"),
        (["--prompt", LEVELS, "--shows", "1, 2"], "--shows: is about what a slider shows, and there is no --slider"),
        (["--prompt", "a {x|y} <slider:1>"], "--prompt: <slider:1> stands for the file of --slider, which is not given"),
        (["--slider", "S.safetensors", "--prompt", "a <slider:1>", "--multipliers", "1, 2"], "names the slider itself"),
        (["--slider", "S.safetensors", "--prompt", "a"], "--multipliers: is missing, and S.safetensors does not say"),
        (["--slider", "S.safetensors", "--prompt", "a", "--multipliers", "1"], "--multipliers: 1 alone makes one folder"),
        (["--slider", "S.safetensors", "--prompt", "a", "--shows", "1, 2"], "--shows: S.safetensors has no report card"),
        (["--slider", "S.safetensors", "--prompt", "a", "--neutral", "x"], "--neutral: stands for the levels of a prompt"),
    ],
)  # fmt: skip
def test_what_makes_no_ladder_is_refused_with_the_remedy(argv, said):
    with pytest.raises(InputError) as error:
        ladder_of(*argv)
    assert said in str(error.value)


def test_scales_that_a_slider_never_shows_are_refused_with_what_it_shows():
    metadata = {CARD: card_text((-0.4, 0.0, 0.1, 0.9, 2.1, 3.0))}
    with pytest.raises(InputError, match=r"--shows: 2.5 is not shown by S.safetensors .* \(it shows -0.4 to 2.1\)"):
        ladder_of("--slider", "S.safetensors", "--prompt", "a", "--shows", "1, 2.5", metadata=metadata)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--prompt", LEVELS], "--slider: is missing: name the slider's file; only --ladder can do without"),
        (["--prompt", LEVELS, "--slider", "s", "--shows", "1"], "--shows: is for --ladder, which is not given: leave it out"),
        (["--prompt", LEVELS, "--slider", "s", "--neutral", "x"], "--neutral: is for --ladder, which is not given"),
        (["--prompt", LEVELS, "--ladder", "x", "--out", "y"], "--out: has no effect with --ladder: leave it out"),
        (["--prompt", LEVELS, "--ladder", "x", "--card", "y"], "--card: has no effect with --ladder"),
        (["--prompt", LEVELS, "--ladder", "x", "--overwrite"], "--overwrite: would mix the pictures of two ladders"),
        (["--prompt", LEVELS, "--ladder", "x", "--shows", "1", "--multipliers", "1"], "--shows: replaces --multipliers"),
    ],
)  # fmt: skip
def test_flags_that_mean_nothing_together_are_refused(argv, said):
    with pytest.raises(InputError) as error:
        load_sample_settings([*argv, *SMALL])
    assert said in str(error.value)


def test_the_first_braces_are_the_levels():
    assert split_levels("a <lora:{b:1> {x|y} {c|d}") == ("a <lora:{b:1> ", ("x", "y"), " {c|d}")
    assert split_levels("${v={a|b}} {single} {x|}") == ("${v={a|b}} {single} ", ("x", ""), "")


# --- the prompt of the first steps


@pytest.mark.parametrize("name", ["sdxl", "sd", "flux2", "zimage"])
def test_a_row_begins_under_its_first_prompt_and_goes_on_under_its_own(name):
    """At from_step 0 the first prompt is never read; at 2 of 3 only the last step runs under the row's own."""
    model = FAMILIES[name].load(PretrainedModel(name_or_path="tiny"), torch.float32)
    embeds = model.encode_prompts(["a young man in the street", "old", ""], "cpu")
    young, old, negative = embeds["a young man in the street"], embeds["old"], model.negative("", embeds)
    facts = model.facts
    side = 2 * facts.picture_multiple if facts.picture_multiple >= 32 else 64
    common = {"width": side, "height": side, "steps": 3, "guidance": 3.0}

    read = []  # by each call of the denoiser
    tokens = "tokens" if name == "zimage" else "encoder_hidden_states"
    model.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: read.append((kwargs[tokens], kwargs.get("added_cond_kwargs") or {})),
        with_kwargs=True,
    )

    def pictures(rows, from_step):
        return list(sample(model, [], rows, negative, Sampling(**common, from_step=from_step)))

    switched = [Row(old, 1, (), young), Row(young, 2, ())]
    (alone_old,), (alone_young,) = pictures([Row(old, 1, ())], 0), pictures([Row(young, 1, ())], 0)
    never = pictures(switched, 0)
    read.clear()
    late = pictures(switched, 2)
    calls = [read[i : i + len(read) // 3] for i in range(0, len(read), len(read) // 3)]  # of each step
    for step, rows in enumerate(calls):
        for prompt, there in ((young, step < 2), (old, step == 2), (negative, True)):
            found = [bool((row[: len(prompt.tokens)] == prompt.tokens).all()) for batch, _ in rows for row in batch]
            assert sum(found) == (
                2 if prompt is negative or (prompt is young and there) else int(prompt is young) + there
            )
            pooled = [bool((row == prompt.pooled).all()) for _, added in rows for row in added.get("text_embeds", ())]
            assert pooled in ([], found)
    assert (never[0] - alone_old).abs().max() < 1e-4  # from the first step on under its own
    assert (late[0] - alone_old).abs().max() > 1e-4 < (late[0] - alone_young).abs().max()
    (own,) = pictures([Row(young, 2, ())], 0)
    assert (late[1] - own).abs().max() < 1e-4  # a row without another first prompt


# --- the command


@pytest.fixture(scope="module")
def made(sample_main, tmp_path_factory):
    """(folder, what the command printed, without progress)."""
    root = tmp_path_factory.mktemp("made")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        argv = [
            "--ladder",
            str(root / "my age"),
            "--prompt",
            LEVELS,
            "a {young|adult|old} cat",
            "--seeds",
            "7, 8",
            "--from_step",
            "1",
        ]
        assert sample_main([*argv, *SMALL, "--negative", "grey"]) == 0
    return root / "my age", output.getvalue()


def test_the_command_writes_rows_captions_and_a_page(made):
    root, _ = made
    folders, names = ("1_young", "2_middle-aged", "3_old"), ("01_seed7", "01_seed8", "02_seed7", "02_seed8")
    pictures = {f"{folder}/{name}.png" for folder in folders for name in names}
    texts = {f"captions/{name}.txt" for name in names}
    assert {str(p.relative_to(root)) for p in root.rglob("*.*") if p.is_file()} == pictures | texts | {"index.html"}
    assert (root / "captions" / "02_seed8.txt").read_text(encoding="utf-8") == "a cat\n"
    row = [np.asarray(Image.open(root / folder / "01_seed7.png"), dtype=float) for folder in folders]
    assert row[0].shape == (64, 64, 3) and np.abs(row[0] - row[2]).max() > 0
    parameters = Image.open(root / "2_middle-aged" / "02_seed8.png").text["parameters"]
    assert parameters.startswith("a adult cat\nNegative prompt: grey\nSteps: 2") and "Level from step: 1" in parameters


def test_its_last_line_is_the_command_that_trains_on_it(made, train_main, tmp_path, capsys):
    root, output = made
    line = output.splitlines()[-1]
    assert line.startswith(
        "train   uv run trainscripts/imagesliders/train_lora-scale-xl.py --config_file trainscripts/"
    )
    argv = shlex.split(line)[4:]
    assert argv[argv.index("--folders") + 1] == "1_young, 2_middle-aged, 3_old" and argv[-3:] == ["-1,", "0,", "1"]
    config = write_experiment(tmp_path, data=root, prompts=None, prompts_file=None)[1]
    argv[argv.index("--config_file") + 1] = config
    (tmp_path / "bad.txt").write_text("01_seed8\n02_seed7.png\n", encoding="utf-8")
    leave_out = ["--leave_out", str(tmp_path / "bad.txt")]
    assert train_main([*argv, "--device", "cpu", "--iterations", "1", *leave_out]) == 0
    printed = capsys.readouterr().out
    assert "images  2 names × 3 scales, 2 left out (--leave_out)" in printed
    (slider,) = (tmp_path / "models").rglob("*_last.safetensors")
    assert slider.name.startswith("my_age_") and "x" not in slider.parent.name.split("_")[0]
    with safe_open(slider, framework="pt") as file:
        assert json.loads(file.metadata()["sliders.folders"]) == {"1_young": -1, "2_middle-aged": 0, "3_old": 1}
        assert set(json.loads(file.metadata()["ss_tag_frequency"])["3_old"]) == {"a man", "a cat"}


def test_a_ladder_is_never_written_where_files_are(made, sample_main, capsys):
    root, _ = made
    before = everything_in(root)
    assert sample_main(["--ladder", str(root), "--prompt", LEVELS, *SMALL]) == 2
    assert f"--ladder: {root} already contains files: choose another folder." in capsys.readouterr().err
    assert everything_in(root) == before


@pytest.fixture(scope="module")
def slider(tmp_path_factory):
    """Trained with a high learning rate for a strong effect."""
    root = tmp_path_factory.mktemp("slider")
    data = make_scale_folders(root / "data", folders=("low", "high"))
    flags = ["--folders", "low, high", "--scales", "-1, 1", "--iterations", "3", "--lr", "0.02"]
    (report,) = run_all(load_settings(write_experiment(root, flags=flags, data=data))[0])
    return report.path


def test_a_sliders_ladder_shows_what_the_sample_command_shows(sample_main, slider, tmp_path, capsys):
    given = [
        "--slider",
        str(slider),
        "--prompt",
        "a disc",
        "--seeds",
        "3",
        "--multipliers=-1, 0.5, 2",
        "--clip_skip",
        "1",
        *SMALL,
    ]
    assert sample_main([*given, "--ladder", str(tmp_path / "ladder")]) == 0
    printed = capsys.readouterr().out
    assert "--folders 'x-1, x0.5, x2' --resolution 64 --scales -1, 0.5, 2" in printed
    assert 'config  it needs pretrained_model: {"clip_skip": 1}\n' in printed
    assert sample_main([*given, "--out", str(tmp_path / "out")]) == 0
    for label in ("-1", "0.5", "2"):
        one, other = (
            np.asarray(Image.open(tmp_path / name), dtype=int)
            for name in (f"ladder/x{label}/01_seed3.png", f"out/01_seed3_x{label}.png")
        )
        assert np.abs(one - other).max() <= 1
    data = load_settings(
        write_experiment(tmp_path, ["--folders", "x-1, x0.5, x2", "--scales", "-1, 0.5, 2"], data=tmp_path / "ladder")
    )
    assert ScaleFolders.find(data[0][0].data, 32).captions == ("a disc",)


def test_a_slider_is_made_to_show_its_scales(sample_main, slider, tmp_path):
    """With a card written by hand into a copy of the file."""
    copy = shutil.copy(slider, tmp_path / "carded.safetensors")
    with safe_open(slider, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(slider), copy, {**metadata, CARD: card_text((-0.4, 0.0, 0.1, 0.9, 2.1, 3.0))})
    argv = ["--slider", str(copy), "--prompt", "a disc", "--seeds", "3", "--shows", "0.5, 1.5", *SMALL]
    assert sample_main([*argv, "--ladder", str(tmp_path / "ladder")]) == 0
    parameters = Image.open(tmp_path / "ladder" / "shows0.5" / "01_seed3.png").text["parameters"]
    assert parameters.startswith("a disc <lora:carded:0.75>\n")


# --- the page


@pytest.mark.parametrize("size", [(1280, 1000), (390, 844)])
def test_rows_are_ticked_on_the_page_and_their_names_taken_along(made, tmp_path, size):
    root, _ = made
    with browser(tmp_path / "profile", size) as driver:
        driver.get((root / "index.html").as_uri())
        boxes, bar = driver.find_elements("css selector", "main input"), driver.find_element("css selector", ".ticked")
        assert [box.accessible_name for box in boxes] == ["01_seed7", "01_seed8", "02_seed7", "02_seed8"]
        assert bar.text.startswith("0 of 4 rows ticked")
        boxes[1].click()
        strip = driver.find_elements("css selector", ".strip")[2]
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", strip)
        strip.click()
        names = driver.find_element("id", "names").get_attribute("value")
        assert names == "01_seed8\n02_seed7" and bar.text.startswith("2 of 4 rows ticked")
        saved = driver.find_element("id", "save")
        assert saved.get_attribute("download") == "leave_out.txt"
        assert unquote(saved.get_attribute("href").partition(",")[2]) == "01_seed8\n02_seed7\n"
        driver.find_element("id", "copy").click()
        assert driver.find_element("id", "copy").text == "Copied"
        boxes[1].send_keys(" ")
        assert driver.find_element("id", "names").get_attribute("value") == "02_seed7"
        width = "(image) => { image.loading = 'eager'; return image.decode().then(() => image.naturalWidth); }"
        every = f"Promise.all([...document.images].map({width}))"
        widths = driver.execute_async_script(f"{every}.then(arguments[0], (error) => arguments[0](String(error)))")
        assert widths == [64] * 12
        assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
        assert [e for e in driver.get_log("browser") if e["level"] == "SEVERE"] == []
