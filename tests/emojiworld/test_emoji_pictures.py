"""The archive of pictures, and what is composed of them."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from emojiworld.attributes import ATTRIBUTES, at_scale, evaluation_scenes, training_scenes
from emojiworld.changes import blur, frost, turn_hue
from emojiworld.get_pictures import DRAWN, in_order, split_tone, unpacked
from emojiworld.make_dataset import write_dataset
from emojiworld.pictures import HELD_OUT_SHARE, TONES, load_pictures
from emojiworld.world import MARGIN, all_captions, backgrounds, captions, fade, placed, render, sample_scenes, words
from PIL import Image
from sliders.config.families import SDXL
from sliders.config.schema import Data
from sliders.data.dataset import ScaleFolders
from sliders.system.errors import InputError

NAMED = ("skin", "tone", "flat", "3d", "rendered", "frost", "ice", "hue", "large", "small", "blur")


def drawn(world, count=32, seed=0):
    return sample_scenes(world.pictures, count, torch.Generator().manual_seed(seed))


def test_the_archive_holds_two_styles_and_five_tones(stand_ins):
    pictures = stand_ins.pictures
    assert len(pictures) == 16 and pictures.toned.sum() == 8
    assert pictures.index.shape == (16, 2, TONES)
    assert (pictures.index[pictures.toned].flatten(1).sort(1).values.diff(dim=1) > 0).all()  # ten pictures
    assert (pictures.index[~pictures.toned] == pictures.index[~pictures.toned][..., :1]).all()  # one for all tones
    assert pictures.frame[:, 2].min() > 0.5 and pictures.frame[:, 2].max() <= 1


def test_a_missing_or_broken_archive_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match=r"get_pictures\.py"):
        load_pictures(tmp_path / "pictures.zip")
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(InputError, match="not an archive of emoji pictures"):
        load_pictures(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "hollow.zip", "w") as archive:
        archive.writestr("names.json", '[{"name": "ring", "mirror": true, "codes": ["1"]}]')
    with pytest.raises(InputError, match="flat/1"):
        load_pictures(tmp_path / "hollow.zip")


def test_without_npm_one_sentence_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"^npm was not found: install Node\.js with npm"):
        unpacked(DRAWN, tmp_path)


def test_names_are_words_of_letters_and_tones_are_taken_out():
    assert split_tone("waving_hand_medium-dark_skin_tone") == ("waving hand", "medium-dark")
    assert split_tone("person_light_skin_tone_blond_hair") == ("person blond hair", "light")
    assert split_tone("man’s_shoe") == ("mans shoe", "")
    assert split_tone("e-mail") == ("e mail", "")
    assert split_tone("keycap_1")[0] == split_tone("Åland_Islands")[0] == ""


def test_of_two_middle_tones_the_lighter_comes_first():
    tones = [Image.new("RGBA", (4, 4), (level, level, level, 255)) for level in (200, 90, 150, 60, 30)]
    assert in_order(tones) == [tones[i] for i in (0, 2, 1, 3, 4)] == in_order(in_order(tones))
    assert in_order(tones[:1]) == tones[:1]


def test_skin_darkens_from_tone_to_tone_in_both_styles(emoji):
    """Seen where the first and the last differ; hair, which also changes, makes a few exceptions."""
    pictures = emoji.pictures
    for style in (0, 1):
        sprites = pictures.sprites[pictures.index[pictures.toned, style]][:, :, :3].float()  # [names, tones, 3, h, w]
        differing = (sprites[:, 0] - sprites[:, -1]).abs()
        brightness = (sprites * differing[:, None]).sum((2, 3, 4)) / differing.sum((1, 2, 3))[:, None]
        assert (brightness.mean(0).diff() < 0).all()
        assert (brightness[:, 2:].diff(dim=1) < 0).all(1).float().mean() > 0.98
        assert (brightness[:, 1] > brightness[:, 2]).float().mean() > 0.98


def test_captions_name_the_emoji_and_the_background_alone(stand_ins):
    every = all_captions(stand_ins.pictures)
    assert len(set(every)) == len(every) == 16 * 6
    assert every[0] == "a waving hand on a white background" and "an ear on a grey background" in every
    scenes = drawn(stand_ins)
    other = replace(scenes, tone=scenes.tone * 0 + 1, style=1 - scenes.style, size=scenes.size * 0.9, changes={})
    assert captions(scenes, stand_ins.pictures) == captions(other, stand_ins.pictures)
    assert not set(NAMED) & set(words(stand_ins.pictures))


def test_no_caption_of_the_packages_names_what_is_measured(emoji):
    assert {word for word in words(emoji.pictures) if word in NAMED} <= {"ice"}  # which some emoji are made of
    assert len(emoji.pictures) > 1400 and emoji.pictures.toned.sum() > 250


def test_scenes_and_pictures_are_a_function_of_the_seed(stand_ins):
    pictures = stand_ins.pictures
    first, again, other = (render(drawn(stand_ins, 8, seed), pictures) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 1


def test_every_emoji_is_inside_the_frame_and_the_rest_is_background(stand_ins):
    scenes = replace(drawn(stand_ins, 64), changes={})
    alpha = placed(scenes, stand_ins.pictures, fade(scenes, stand_ins.pictures))[:, 3]
    edge = int(MARGIN) - 1
    inside = torch.zeros_like(alpha)
    inside[:, edge:-edge, edge:-edge] = 1
    assert (alpha * (1 - inside)).max() < 0.01
    clear = (alpha == 0)[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(render(scenes, stand_ins.pictures)[clear], backgrounds(scenes)[clear])


def test_mirrored_names_are_only_those_that_a_mirror_leaves_true(stand_ins):
    scenes = drawn(stand_ins, 256)
    left = stand_ins.pictures.names.index("left fist")
    assert not scenes.mirror[scenes.name == left].any() and scenes.mirror[scenes.name != left].any()


def test_names_held_out_are_in_no_folder(emoji):
    pictures = emoji.pictures
    share = len(pictures.held_out_names()) / len(pictures)
    assert abs(share - HELD_OUT_SHARE) < 0.03
    for name in ATTRIBUTES:
        trained, asked = training_scenes(pictures, name), evaluation_scenes(pictures, name)
        assert not set(trained.name.tolist()) & set(asked.name.tolist())
        assert len(set(trained.name.tolist())) == len(trained) == 24 and len(set(asked.name.tolist())) == 16


def test_changes_of_amount_0_change_nothing(stand_ins):
    pictures = render(drawn(stand_ins, 4), stand_ins.pictures)
    mask = torch.ones(4, 1, 128, 128)
    for change in (frost, turn_hue, blur):
        assert (change(pictures, mask, torch.zeros(4)) - pictures).abs().max() < 2e-3


def test_a_third_of_a_turn_makes_red_green():
    red = torch.tensor([0.6, 0.2, 0.2]).view(1, 3, 1, 1)
    turned = turn_hue(red, torch.ones(1, 1, 1, 1), torch.tensor([120.0])).flatten()
    assert turned[1] > turned[0] + 0.15 and turned[1] > turned[2] + 0.15


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_the_folders_are_what_the_trainer_wants(stand_ins, tmp_path, name):
    attribute = ATTRIBUTES[name]
    write_dataset(stand_ins.pictures, name, tmp_path, count=4)
    data = Data(folder_main=tmp_path, folders=attribute.folders, scales=attribute.scales)
    found = ScaleFolders.find(data, SDXL.size_multiple)
    assert len(found.names) == 4
    texts = sorted(path.read_text().strip() for path in (tmp_path / attribute.folders[0]).glob("*.txt"))
    assert len(texts) == 4 and all(" on a " in text and text.endswith(" background") for text in texts)
    assert Image.open(next((tmp_path / attribute.folders[-1]).glob("*.png"))).size == (128, 128)


def test_too_many_scenes_are_refused(stand_ins, tmp_path):
    with pytest.raises(ValueError, match="skin has 5 names for scenes, not 6"):
        write_dataset(stand_ins.pictures, "skin", tmp_path, count=6)


def test_all_but_the_attribute_is_the_same_in_all_folders(stand_ins):
    scenes = training_scenes(stand_ins.pictures, "skin", 4)
    light, dark = (at_scale(scenes, "skin", scale) for scale in (-2.0, 2.0))
    assert torch.equal(light.size, dark.size) and torch.equal(light.style, dark.style)
    assert (dark.tone - light.tone == 4).all()


@pytest.mark.skipif(
    shutil.which("npm") is None or not all(importlib.util.find_spec(name) for name in ("emoji", "resvg_py")),
    reason="needs npm and the group emoji",
)
def test_the_command_needs_no_network_to_say_what_is_wrong(tmp_path):
    """With a registry that answers nothing."""
    command = [
        sys.executable,
        str(ROOT / "trainscripts" / "emojiworld" / "get_pictures.py"),
        "--out",
        str(tmp_path / "p.zip"),
    ]
    environment = {
        "PATH": str(shutil.which("npm")).removesuffix("/npm") + ":/usr/bin:/bin",
        "PYTHONPATH": ":".join(sys.path),
        "npm_config_registry": "http://127.0.0.1:9",
        "npm_config_fetch_retries": "0",
        "npm_config_cache": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "npm cannot get @lobehub/fluent-emoji-3d" in done.stderr
    assert not (tmp_path / "p.zip").exists()
