"""Report cards through the commands: sampling, comparing, and the end of a training run."""

import json
import re
import shutil

import pytest
import torch
from browser import browser
from conftest import make_scale_folders, script_main, write_experiment
from experiments import everything_in
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sliders.config.settings import load_settings
from sliders.formats.cards import read_card
from sliders.formats.slider_file import add_metadata
from sliders.system.weight_files import open_weights
from sliders.train.runs import run_all

FOLDERS, SCALES = ("low", "middle", "high"), (-1.0, 0.5, 1.0)
SMALL = ("--model", "tiny", "--device", "cpu", "--steps", "2", "--seeds", "1", "2")


@pytest.fixture(scope="session")
def compare_main():
    return script_main("compare_sliders")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(slider, its data set): trained with previews, so that the run ends with a page and a card."""
    root = tmp_path_factory.mktemp("trained")
    data = make_scale_folders(root / "data", folders=FOLDERS, names=("a", "b", "c"))
    flags = ["--folders", ", ".join(FOLDERS), "--scales", "-1, 0.5, 1", "--iterations", "4", "--lr", "0.02"]
    preview = {"prompts": ["a disc", "two discs"], "steps": 2}
    (report,) = run_all(load_settings(write_experiment(root, flags=flags, data=data, preview=preview))[0])
    return report.path, data


@pytest.fixture
def slider(trained, tmp_path):
    """A copy with its sidecar, which measuring may change."""
    path, data = trained
    for ending in (".safetensors", ".json"):
        shutil.copy(path.with_suffix(ending), tmp_path / f"slider{ending}")
    return tmp_path / "slider.safetensors", data


def test_a_run_with_previews_ends_with_a_page_and_a_card(trained):
    path, _ = trained
    text = path.with_suffix(".html").read_text(encoding="utf-8")
    assert text.count('<figure class="shot"') == 2
    assert "Report card" in text
    card = read_card(open_weights(path, "").metadata)
    assert card.scales == SCALES
    assert card.multipliers == (-1.0, 0.0, 0.5, 1.0, 1.5)  # the preview's
    assert len(card.readings) == 2
    assert card.images == 9
    assert "Measured on 2 rows of pictures" in path.with_suffix(".json").read_text(encoding="utf-8")


def test_sampling_with_a_card_measures_the_slider(sample_main, slider, tmp_path, capsys):
    path, data = slider
    weights = load_file(path)
    argv = ["--slider", str(path), "--prompt", "a disc", "--card", str(data), "--out", str(tmp_path / "out"), *SMALL]
    assert sample_main(argv) == 0
    card = read_card(open_weights(path, "").metadata)
    assert card.multipliers == (-2.0, -1.5, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0)
    assert len(card.readings) == 2
    assert load_file(path).keys() == weights.keys()
    assert f"(off by {card.calibration:.2f} ± {card.doubt:.2f} on average)" in capsys.readouterr().out
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert f"off by {card.calibration:.2f}" in text
    assert text.count('<circle class="wanted"') == 3


def test_a_card_beside_another_lora_is_shown_and_kept_only_if_the_slider_was_trained_with_it(
    sample_main, slider, tmp_path, capsys
):
    path, data = slider
    (tmp_path / "loras").mkdir()
    shutil.copy(path, tmp_path / "loras" / "style.safetensors")
    argv = ["--slider", str(path), "--lora_dir", str(tmp_path / "loras"), "--card", str(data), *SMALL, "--seeds", "1"]
    argv += ["--prompt", "a disc <lora:style:0.6>", "--overwrite", "--out", str(tmp_path / "out")]
    before = read_card(open_weights(path, "").metadata)
    assert sample_main(argv) == 0
    assert "slider beside <lora:style:0.6>, so not kept in its file: " in capsys.readouterr().out
    assert read_card(open_weights(path, "").metadata) == before
    assert "Report card" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    add_metadata(path, {"sliders.loras": json.dumps([{"name": "style", "weight": 0.6, "hash": ""}])})
    assert sample_main(argv) == 0
    assert "not kept" not in capsys.readouterr().out
    assert read_card(open_weights(path, "").metadata) != before


def test_the_same_pictures_get_the_same_card(sample_main, slider, tmp_path):
    path, data = slider
    argv = ["--slider", str(path), "--prompt", "a disc", "--card", str(data), "--overwrite", *SMALL]
    cards = []
    for size in ("1", "16"):
        assert sample_main([*argv, "--batch_size", size, "--out", str(tmp_path / size)]) == 0
        cards.append(read_card(open_weights(path, "").metadata))
    for one, other in zip(*(card.readings for card in cards), strict=True):
        assert one == pytest.approx(other, abs=1e-2)


def test_sliders_are_compared_in_a_table_and_on_one_page(compare_main, slider, tmp_path, capsys):
    path, data = slider
    other = shutil.copy(path, tmp_path / "other.safetensors")
    out = tmp_path / "out"
    argv = [
        str(path),
        str(other),
        "--prompt",
        "a disc",
        "--card",
        str(data),
        "--out",
        str(out),
        "--multipliers=-1, 0, 0.5, 1",
    ]
    assert compare_main([*argv, *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[next(n for n, line in enumerate(lines) if line.startswith("slider  ")) :]
    assert {line.split()[0] for line in table[:3]} == {"slider", "other"}  # the heading is `slider`, too
    assert read_card(open_weights(path, "").metadata) == read_card(open_weights(other, "").metadata)
    pictures = [{p.name: p.read_bytes() for p in (out / name).glob("*_seed*.png")} for name in ("slider", "other")]
    assert len(pictures[0]) == 8
    assert pictures[0].keys() == pictures[1].keys()
    text = (out / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<label for="shot[^>]*>([^<]*)<', text) == [
        f"{n}, seed {s}" for n in ("slider", "other") for s in (1, 2)
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--card", "nowhere"], "error: --card: nowhere is not a folder: check the path"),
        (["--card", "."], "error: --card: 'low' is not a folder in ."),
        (["--prompt", "a disc <slider:1>"], "the card needs the first slider at the same multipliers"),
    ],
)
def test_a_card_that_cannot_be_measured_is_refused_at_once(sample_main, slider, tmp_path, capsys, changed, message):
    path, data = slider
    before = everything_in(tmp_path)
    argv = [
        "--slider",
        str(path),
        "--prompt",
        "a disc",
        "a cube",
        "--card",
        str(data),
        "--out",
        str(tmp_path / "out"),
        *SMALL,
    ]
    if "--prompt" in changed:
        argv[argv.index("a disc")] = changed[1]
    assert sample_main([*argv, *(changed if "--prompt" not in changed else [])]) == 2
    assert message in capsys.readouterr().err
    assert everything_in(tmp_path) == before


def test_one_image_per_folder_is_too_few(sample_main, slider, tmp_path, capsys):
    path, _ = slider
    data = make_scale_folders(tmp_path / "one", folders=FOLDERS, names=("a",))
    argv = ["--slider", str(path), "--prompt", "a disc", "--card", str(data), "--out", str(tmp_path / "out"), *SMALL]
    assert sample_main(argv) == 2
    assert (
        "contains one image per folder, but measuring a slider needs at least 2: add images" in capsys.readouterr().err
    )


def test_the_page_keeps_the_order_of_the_table(compare_main, slider, tmp_path, capsys):
    """The best first: one that changes nothing comes last, wherever it was named."""
    path, data = slider
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    zeros = {key: torch.zeros_like(t) if key.endswith("up.weight") else t for key, t in load_file(path).items()}
    save_file(zeros, tmp_path / "still.safetensors", metadata)
    out = tmp_path / "out"
    argv = [
        str(tmp_path / "still.safetensors"),
        str(path),
        "--prompt",
        "a",
        "b",
        "--card",
        str(data),
        "--out",
        str(out),
    ]
    assert compare_main([*argv, *SMALL, "--multipliers", "1"]) == 0
    output = capsys.readouterr().out
    note = f"note: {tmp_path / 'still.safetensors'} changes nothing, because all its weights are zero"
    assert note in output and output.count("note: -1, 0.5 is added to the multipliers") == 2
    assert [line.split(":")[0] for line in output.splitlines() if "Measured on" in line] == ["still", "slider"]
    assert "still: Measured on 4 rows" in output and "the slider changes nothing." in output
    table = [line.split()[0] for line in output.splitlines() if line.startswith(("still ", "slider "))]
    assert table == ["slider", "slider", "still"]  # below the heading, which is `slider`
    text = (out / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<h3>(s[^<]*)<", text) == ["slider", "still"]
    assert re.findall(r'<label for="shot[^>]*>([^<]*), seed', text) == ["slider", "slider", "still", "still"] * 2


def test_two_sliders_of_one_name_cannot_be_compared(compare_main, slider, tmp_path, capsys):
    """Their pictures would go into one folder."""
    twin = tmp_path / "deeper" / "slider.safetensors"
    twin.parent.mkdir()
    shutil.copy(slider[0], twin)
    argv = [str(slider[0]), str(twin), "--prompt", "a disc", "--out", str(tmp_path / "out"), *SMALL]
    assert compare_main(argv) == 2
    assert "two files are named slider: rename one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_slider_cannot_be_compared(compare_main, slider, capsys):
    assert compare_main([str(slider[0]), "--prompt", "a", *SMALL]) == 2
    assert "name at least two sliders to compare" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(1280, 1000), (390, 844)])
def test_the_card_fits_desktop_and_phone(trained, tmp_path, size):
    path, _ = trained
    with browser(tmp_path / "profile", size) as driver:
        driver.get(path.with_suffix(".html").as_uri())
        card = driver.find_element("css selector", ".cards")
        assert "calibration" in card.text
        assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
        chart, rows = (card.find_element("css selector", s).rect for s in (".chart", ".rows"))
        beside = chart["x"] + chart["width"] <= rows["x"]
        assert beside == (size[0] > 500)
