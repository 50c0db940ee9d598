"""A card in a slider's file, and what calibration makes of both."""

import json
import os
import stat

import pytest
import torch
from conftest import script_main
from networks import random_network, unet_output
from safetensors import safe_open
from sliders.config.schema import Network
from sliders.formats.cards import keep_card, read_card
from sliders.formats.slider_file import open_slider, save_slider, slider_tensors
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.narrow import build_narrow_sdxl
from sliders.report.card import Card

MULTIPLIERS = (0.0, 0.5, 1.0, 2.0, 4.0)


def card(strength):
    """Of a slider that shows `strength` of each multiplier."""
    reading = tuple(strength * m for m in MULTIPLIERS)
    return Card(
        (0.5, 1.0, 2.0), MULTIPLIERS, (reading, reading), 0.1, (1.0, 1.0), (0.0, 0.0), (0.0,) * 5, 0.1, (1.0,) * 5, 6
    )


@pytest.fixture(scope="session")
def convert_main():
    return script_main("convert_slider")


@pytest.fixture(params=["lora", "lokr", "full"])
def slider(request, tmp_path):
    """A slider of the tiny model with metadata, and its UNet."""
    unet = build_narrow_sdxl().unet
    network = random_network(unet, "c3lier", "noxattn", algo=request.param)
    settings = Network(type="c3lier", rank=4, alpha=2.0, training_method="noxattn", algo=request.param)
    metadata = {
        "sliders.config": json.dumps({"network": settings.model_dump()}), "ss_output_name": "x", "mine": "kept",
        **SDXL_FAMILY.metadata(None),
    }  # fmt: skip
    path = tmp_path / "x.safetensors"
    save_slider(path, slider_tensors(network, SDXL_FAMILY, torch.float32), metadata, SDXL_FAMILY)
    network.remove()
    return path, unet


def metadata_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def output(path, unet, multiplier):
    network = open_slider(path, unet, SDXL_FAMILY)
    network.set_multipliers(torch.tensor([multiplier]))
    found = unet_output(unet)
    network.remove()
    return found


def test_a_card_is_kept_without_a_change_to_the_slider(slider, capsys):
    path, unet = slider
    before, seen = metadata_of(path), output(path, unet, 1.0)
    assert read_card(metadata_of(path)) is None
    keep_card(path, card(0.5))
    after = metadata_of(path)
    assert read_card(metadata_of(path)) == card(0.5)
    assert {key: after[key] for key in before} == before  # its hash among them
    assert after.keys() - before.keys() == {"sliders.card"}
    assert torch.equal(output(path, unet, 1.0), seen)
    assert "off by" in capsys.readouterr().out
    assert not list(path.parent.glob("*.tmp"))


def test_the_sidecars_notes_say_what_was_measured_last(slider):
    path, _ = slider
    sidecar = path.with_suffix(".json")
    sidecar.write_text(json.dumps({"description": "mine", "notes": "Trained at night.\nA line of the user's"}))
    keep_card(path, card(0.5))
    keep_card(path, card(1.0))
    found = json.loads(sidecar.read_text(encoding="utf-8"))
    first, second, third = found["notes"].splitlines()
    assert (found["description"], first, second) == ("mine", "Trained at night.", "A line of the user's")
    assert "they show 0.50 / 1.00 / 2.00" in third


@pytest.mark.parametrize("content", ["", "[]", '{"notes": 5}', "{}"])
def test_a_sidecar_that_is_not_ours_stays_as_it_is(slider, content):
    path, _ = slider
    path.with_suffix(".json").write_text(content)
    keep_card(path, card(0.5))
    assert path.with_suffix(".json").read_text() == content


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_a_warning(slider, capsys):
    path, _ = slider
    path.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    keep_card(path, card(0.5))
    assert "warning" in capsys.readouterr().out


def test_calibration_folds_the_factor_into_the_weights(slider, convert_main, capsys):
    """What the original did at multiplier X, the calibrated slider does at X divided by the factor."""
    path, unet = slider
    keep_card(path, card(0.5))
    assert convert_main([str(path), "--calibrate", "--model", "tiny"]) == 0
    target = path.with_name("x_calibrated.safetensors")
    found = metadata_of(target)
    factor = float(found["sliders.calibrated_by"])
    assert factor == pytest.approx(2.0, rel=0.01)
    assert torch.allclose(output(target, unet, 1.0), output(path, unet, factor), atol=1e-4)
    assert (found["mine"], found["ss_output_name"]) == ("kept", "x_calibrated")
    assert read_card(metadata_of(target)).calibration < 0.02 < read_card(metadata_of(path)).calibration
    assert "factor  2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("strength", "flags", "message"),
    [
        (None, [], "has no report card to calibrate by: measure it first with sample_slider-xl.py --card"),
        (-0.5, [], "do not show more at 2 than at 0.5, so no factor can calibrate it: train it for longer"),
        (0.5, ["--reverse"], "--calibrate: is for sliders of this trainer: leave out --alpha, --reverse and --keys"),
    ],
)
def test_calibration_refuses_what_it_cannot_improve(slider, convert_main, capsys, strength, flags, message):
    path, _ = slider
    if strength is not None:
        keep_card(path, card(strength))
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    assert convert_main([str(path), "--calibrate", "--model", "tiny", *flags]) == 2
    assert message in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before
