"""The model is trained by the clock, and a slider on it can be trained, measured and compared."""

import json
import pickle
import sys
import time

import pytest
from emojiworld import check_model, pretrain
from emojiworld.evaluate import EmojiWorld
from worlds.compare_settings import Bench, Job, format_table, train_and_measure
from worlds.evaluate import evaluate, format_curve
from worlds.models import load_model

SECONDS = 12


@pytest.fixture(scope="module")
def model(emoji_archive, tmp_path_factory):
    """A tiny model after a few steps. It draws nothing, but everything runs."""
    out = tmp_path_factory.mktemp("emoji model")
    argv = ["--out", str(out), "--seconds", str(SECONDS), "--size", "tiny", "--batch_size", "4", "--scenes", "16"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pretrain.py", *argv, "--pictures", str(emoji_archive), "--device", "cpu"])
        started = time.time()
        assert pretrain.main() == 0
        assert time.time() - started < 5 * SECONDS  # building and the last step run over on a busy machine
    return out


def test_pretraining_stops_by_the_clock_and_writes_a_whole_folder(model):
    loaded = load_model(model)
    assert loaded.pipe.tokenizer("waving hand").input_ids == loaded.pipe.tokenizer("waving  hand").input_ids
    assert len(loaded.pipe.tokenizer("a waving hand").input_ids) == 5  # a token for each word, start and end
    assert json.loads((model / "vae" / "config.json").read_text())["scaling_factor"] > 0
    assert not loaded.pipe.config.force_zeros_for_empty_prompt


@pytest.mark.parametrize(("size", "mebibytes"), [("small", 12), ("large", 90)])
def test_the_weights_take_no_more_room_than_they_may(emoji, size, mebibytes):
    from emojiworld.world import words
    from worlds.training import build_pipeline

    pipe = build_pipeline(pretrain.WIDTHS[size], words(emoji.pictures), 0, "cpu")
    parts = (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    assert sum(parameter.numel() for part in parts for parameter in part.parameters()) * 2 <= mebibytes * 2**20


def test_the_check_writes_a_sheet(model, emoji_archive, tmp_path, monkeypatch, capsys):
    argv = ["--model", str(model), "--pictures", str(emoji_archive), "--device", "cpu", "--seeds", "1", "--steps", "1"]
    monkeypatch.setattr(check_model, "MANY", 8)
    monkeypatch.setattr(check_model, "ATTRIBUTES", {"size": check_model.ATTRIBUTES["size"]})  # the others take a minute
    monkeypatch.setattr(sys, "argv", ["check_model.py", *argv, "--sheet", str(tmp_path / "sheet.png")])
    assert check_model.main() == 0
    said = capsys.readouterr().out
    assert "PSNR" in said and "nearest to their own name of 16" in said
    assert (tmp_path / "sheet.png").exists()


def test_a_world_reaches_other_processes_without_its_pictures(model, emoji_archive):
    world = EmojiWorld(emoji_archive, model)
    asked = world.evaluation("skin")
    sent = pickle.dumps(world)
    assert len(sent) < 10_000 and pickle.loads(sent).evaluation("skin") == asked


def test_the_base_model_is_measured(model, emoji_archive):
    world = EmojiWorld(emoji_archive, model)
    curve = evaluate(world, load_model(model), None, "size")
    assert curve.multipliers == (0.0,) and len(curve.columns["strangeness"]) == 1
    assert "selectivity" in format_curve("base model", curve, world)


def test_a_slider_is_trained_measured_and_tabled(model, emoji_archive, monkeypatch):
    monkeypatch.setattr("worlds.evaluate.dense_multipliers", lambda attribute: (0.0, *attribute.scales))  # half as many
    world = EmojiWorld(emoji_archive, model)
    job = Job(
        "size", "0", 0, scenes=3, steps=2, pairs=1, lr=1e-3, method="noxattn", caption_dropout=0.0, captions="own", ends=True,
        algo="lora", rank=2, factor=None,
    )  # fmt: skip
    found = train_and_measure(Bench(world, model, robustness=False, keep=None), job, "cpu")
    assert Job.of(found) == job
    assert {"mean", "spread", "selectivity", "strangeness", "across", "calibration"} <= found.keys()
    *_, row = format_table(world, [found]).splitlines()
    assert row.startswith("| size | 0 | **")
