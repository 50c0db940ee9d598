"""Which multipliers pictures are made at: what the page and its report card need is added, and the plan says so."""

import re

import pytest
import torch
from conftest import make_scale_folders, write_experiment
from experiments import make_text_trainer, settings_of, text_settings_of, write_text_experiment
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sliders.config.settings import load_settings
from sliders.formats.cards import read_card
from sliders.report.page import multiplier_label
from sliders.sample.compare import _plans
from sliders.sample.plan import make_plan as make_sample_plan
from sliders.sample.preview import completed
from sliders.sample.settings import load_comparison_settings, load_sample_settings
from sliders.system.weight_files import open_weights
from sliders.train.plan import describe, make_plan
from sliders.train.runs import run_all

FOLDERS = ("low", "middle", "high")
SCALES = ("--folders", ", ".join(FOLDERS), "--scales", "0.67, 1, 2")


@pytest.mark.parametrize(
    ("multipliers", "needed", "found", "missing"),
    [
        ((1.0, -1.0), (0.0, 1.0), (1.0, -1.0, 0.0), (0.0,)),
        ((0.0, 1.0, 1.0, 0.0), (), (0.0, 1.0), ()),
        ((0.6700001, 2.0), (0.67,), (0.67, 2.0), ()),  # the same on the page, so the one that is needed
        ((0.67001,), (0.67,), (0.67001, 0.67), (0.67,)),
        ((-0.0, 1.0), (0.0,), (0.0, 1.0), ()),
        ((1 / 3,), (0.333333,), (0.333333,), ()),
        ((), (0.0, 0.5), (0.0, 0.5), (0.0, 0.5)),
        ((1e-7, 2e-7), (0.0,), (1e-7, 2e-7, 0.0), (0.0,)),
    ],
)
def test_what_is_needed_is_added_once(multipliers, needed, found, missing):
    assert completed(multipliers, needed) == (found, missing)
    assert len(set(map(multiplier_label, found))) == len(found)


NOTE = "note: preview.multipliers: the page at the end also shows {}, because its report card needs 0 and every scale."


@pytest.mark.parametrize(
    ("multipliers", "added"),
    [
        (None, None),
        ([], None),
        ([0, 0.67, 1, 2], None),
        ([2, 1, 0.670, 0, 5], None),
        ([0, 1, 1, 2, 0.67, 0.67], None),
        ([-1, 0, 1, 2], "0.67"),
        ([1], "0, 0.67, 2"),
        ([0.67, 1, 2], "0"),
        ([3, -3], "0, 0.67, 1, 2"),
        ([0, 0.6700001, 1, 2], None),
        ([0, 0.671, 1, 2], "0.67"),
    ],
)
def test_the_plan_says_which_multipliers_are_added(tmp_path, multipliers, added):
    data = make_scale_folders(tmp_path / "data", folders=FOLDERS)
    preview = {"prompts": ["a disc"], "multipliers": multipliers}
    text = describe(make_plan(settings_of(write_experiment(tmp_path, flags=SCALES, data=data, preview=preview))))
    assert [line for line in text.splitlines() if "preview" in line] == ([NOTE.format(added)] if added else [])


def test_the_plan_says_why_there_will_be_no_card(tmp_path):
    data = make_scale_folders(tmp_path / "data", folders=FOLDERS, names=("a",))
    argv = write_experiment(tmp_path, flags=SCALES, data=data, preview={"prompts": ["a disc"], "multipliers": [1]})
    text = describe(make_plan(settings_of(argv)))
    assert (
        "note: preview: the page at the end has no report card, which needs at least 2 names of images: add images."
        in text
    )
    assert "also shows 0, because it compares with 0" in text
    argv = write_experiment(tmp_path, flags=SCALES, data=data, preview={"prompts": []})
    assert "preview" not in describe(make_plan(settings_of(argv)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train_main):
    """(output, folder of the run): previews at one multiplier, which is no scale, with two seeds of each prompt."""
    root = tmp_path_factory.mktemp("trained")
    data = make_scale_folders(root / "data", folders=FOLDERS, names=("a", "b", "c"))
    preview = {"prompts": ["a disc", "two discs"], "steps": 2, "multipliers": [3, 3.0], "seed": 5, "seeds": 2}
    argv = write_experiment(root, flags=[*SCALES, "--iterations", "2", "--lr", "0.02"], data=data, preview=preview)
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        assert train_main(argv) == 0
    return "\n".join(lines), next((root / "models").iterdir())


def test_a_run_ends_with_all_that_its_card_needs_and_the_picture_that_was_asked_for(trained):
    output, folder = trained
    (slider,) = folder.glob("*_last.safetensors")
    card = read_card(open_weights(slider, "").metadata)
    assert card.multipliers == (0.0, 0.67, 1.0, 2.0, 3.0)
    assert len(card.readings) == 4
    page = slider.with_suffix(".html")
    assert re.findall(r'<label for="shot[^>]*>([^<]*)<', page.read_text(encoding="utf-8")) == [
        f"seed {seed}" for seed in (5, 7, 6, 8)
    ]
    with Image.open(slider.with_suffix(".preview.png")) as picture:
        assert 2 * 64 < picture.height < 3 * 64 and picture.width < 64 + 250
    assert output.splitlines()[-2:] == [f"picture {slider.with_suffix('.preview.png')}", f"page    {page}"]
    assert f"\n{slider.stem}: Measured on 4 rows" in output


def test_the_page_of_a_text_slider_compares_with_0(tmp_path):
    preview = {"prompts": ["a disc"], "steps": 1, "multipliers": [2, 1]}
    settings = text_settings_of(write_text_experiment(tmp_path / "plan", preview=preview))
    assert "preview.multipliers: the page at the end also shows 0, because it compares with 0." in describe(
        make_plan(settings)
    )
    previews = make_text_trainer(tmp_path / "run", preview=preview).previews
    pictures = previews.pictures(last=True)
    assert pictures.shape[:2] == (1, 3)
    page, card = previews.page("x", pictures)
    assert page.multipliers == [0, 1, 2] and card is None
    assert previews.grid(pictures).size == previews.grid(previews.pictures()).size


@pytest.fixture(scope="module")
def slider(tmp_path_factory):
    """(slider, its data set), trained at 0.67, 1 and 2."""
    root = tmp_path_factory.mktemp("slider")
    data = make_scale_folders(root / "data", folders=FOLDERS, names=("a", "b", "c"))
    argv = write_experiment(root, flags=[*SCALES, "--iterations", "2", "--lr", "0.02"], data=data)
    (report,) = run_all(load_settings(argv)[0])
    return report.path, data


def sample_argv(tmp_path, *words):
    return ["--model", "tiny", "--device", "cpu", "--out", str(tmp_path / "out"), *words]


CARD = (-2.0, -1.0, 0.0, 0.67, 1.0, 2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("words", "multipliers", "added"),
    [
        (["--prompt", "a"], CARD, None),
        (["--prompt", "a", "--multipliers", "0.67, 1, 2"], (0.0, 0.67, 1.0, 2.0), None),
        (["--prompt", "a", "--multipliers", "2 1 0.670 1.0"], (0.0, 0.67, 1.0, 2.0), None),
        (["--prompt", "a", "--multipliers=-1, 1"], (-1.0, 0.0, 0.67, 1.0, 2.0), "0.67, 2"),
        (["--prompt", "a", "--multipliers", "5"], (0.0, 0.67, 1.0, 2.0, 5.0), "0.67, 1, 2"),
        (["--prompt", "a", "--multipliers=-0"], (0.0, 0.67, 1.0, 2.0), "0.67, 1, 2"),
        (["--prompt", "a", "--multipliers", "0.6700001, 1, 2"], (0.0, 0.67, 1.0, 2.0), None),
        (["--prompt", "a", "b", "--multipliers", "1"], (0.0, 0.67, 1.0, 2.0), "0.67, 2"),
        (["--prompt", "a {<slider:1>|<slider:3>}"], (0.0, 0.67, 1.0, 2.0, 3.0), "0.67, 2"),
        (["--prompt", "a <slider:1>", "b <slider:1.0>"], (0.0, 0.67, 1.0, 2.0), "0.67, 2"),
    ],
)
def test_a_card_gets_the_scales_it_needs(slider, tmp_path, words, multipliers, added):
    path, data = slider
    plan = make_sample_plan(
        load_sample_settings(sample_argv(tmp_path, "--slider", str(path), "--card", str(data), *words))
    )
    assert {group.multipliers for group in plan.groups} == {multipliers}
    said = [note for note in plan.notes if "is added to the multipliers" in note]
    assert [note.partition(" is")[0] for note in said] == ([added] if added else [])


def test_multipliers_that_look_alike_are_one_picture(slider, tmp_path):
    """Their file names would be the same."""
    argv = sample_argv(tmp_path, "--slider", str(slider[0]), "--prompt", "a", "--multipliers", "1, 1.0000001, -0, 0.5")
    (group,) = make_sample_plan(load_sample_settings(argv)).groups
    assert list(map(multiplier_label, group.multipliers)) == ["0", "0.5", "1"]


def retrained(path, target, scales, zero=False):
    """A copy that says that it was trained at other scales, or whose up weights are zero."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    folders = str(dict(zip(FOLDERS, scales, strict=True))).replace("'", '"')
    tensors = {k: torch.zeros_like(t) if zero and k.endswith("up.weight") else t for k, t in load_file(path).items()}
    save_file(tensors, target, {**metadata, "sliders.folders": folders})
    return str(target)


@pytest.mark.parametrize("words", [[], ["--multipliers", "1, 3"]])
def test_compared_sliders_share_the_multipliers_that_their_cards_need(slider, tmp_path, words):
    path, data = slider
    other = retrained(path, tmp_path / "other.safetensors", (0.5, 1.0, 1.5))
    argv = sample_argv(tmp_path, str(path), other, "--card", str(data), "--prompt", "a", "b", *words)
    plans = _plans(load_comparison_settings(argv))
    multipliers = {group.multipliers for plan in plans for group in plan.groups}
    assert len(multipliers) == 1
    assert {0.0, 0.5, 0.67, 1.0, 1.5, 2.0} <= set(next(iter(multipliers)))


def test_a_slider_that_changes_nothing_is_named(slider, tmp_path):
    path, _ = slider
    still = retrained(path, tmp_path / "still.safetensors", (0.67, 1.0, 2.0), zero=True)
    argv = sample_argv(tmp_path, str(path), still, "--prompt", "a")
    (first, second) = _plans(load_comparison_settings(argv))
    assert first.notes == ()
    assert second.notes == (
        f"{still} changes nothing, because all its weights are zero: its pictures are those of still at 0.",
    )
