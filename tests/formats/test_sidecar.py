"""The sidecar that web UIs read beside a slider file."""

import json

import pytest
from conftest import make_scale_folders, write_experiment
from sliders.formats.sidecar import middle_scale
from sliders.sample.templates import expand

KEYS = {"description", "sd version", "activation text", "preferred weight", "negative text", "notes"}
STEM = "probe_alpha2.0_rank4_noxattn"
PROMPTS = [{"target": "robe", "positive": "a frosted “robe”", "unconditional": "blurred", "resolution": 64}]


def train(tmp_path, train_main, **sections):
    data = make_scale_folders(tmp_path / "data", folders=("small", "base", "huge"))
    flags = ["--folders", "small, base, huge", "--scales", "0.67, 1, 2"]
    assert train_main(write_experiment(tmp_path, flags=flags, data=data, prompts=PROMPTS, **sections)) == 0
    return tmp_path / "models" / STEM


def test_each_slider_file_has_a_sidecar_with_the_allowed_keys(tmp_path, train_main):
    folder = train(tmp_path, train_main, save={"per_steps": 2})
    assert {p.name for p in folder.iterdir() if p.suffix != ".state" and p.is_file()} == {
        f"{STEM}_{end}" for end in ("2steps.safetensors", "2steps.json", "last.safetensors", "last.json")
    }  # and no .txt, which A1111 would show as the description
    sidecar = json.loads((folder / f"{STEM}_last.json").read_text(encoding="utf-8"))
    assert set(sidecar) == KEYS
    assert (sidecar["sd version"], sidecar["preferred weight"]) == ("SDXL", 1.0)
    assert (sidecar["activation text"], sidecar["negative text"]) == ("a frosted “robe”", "blurred")
    scales, _, template = sidecar["notes"].splitlines()
    assert scales == "Trained at small = 0.67, base = 1, huge = 2."
    assert [v.multiplier(f"{STEM}_last") for v in expand(template, "", 10)] == [0, 0.67, 1, 2]


def test_sidecars_can_be_turned_off(tmp_path, train_main):
    folder = train(tmp_path, train_main, save={"per_steps": 2, "sidecars": False})
    assert {p.suffix for p in folder.iterdir() if p.is_file()} == {".safetensors", ".state"}


@pytest.mark.parametrize(
    ("scales", "weight"),
    [((0.67, 1, 1.3, 2), 1.3), ((0.67, 1, 2), 1), ((-1, 1), 1), ((-2, -1, 1, 2), 1), ((-1, 0, 1), 1),
     ((-3, -2, 0, 0.5, 4), 0.5), ((0.5, 2, 3, 4, 5), 2), ((-1, 0), 1), ((-2, -1), 1), ((3, 4), 1)],
)  # fmt: skip
def test_the_preferred_weight_is_the_scale_nearest_to_the_middle_that_a1111s_form_can_hold(scales, weight):
    assert middle_scale(scales) == weight
