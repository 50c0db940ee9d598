"""Captions: where they may lie, what is wrong with them, and that each image is trained under its own."""

import json

import pytest
from conftest import FOUR_FOLDERS, make_scale_folders, write_experiment
from experiments import settings_of
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from sliders.config.prompts import PromptSet
from sliders.config.schema import Data
from sliders.data.dataset import ScaleFolders
from sliders.system.errors import InputError
from sliders.train.plan import make_plan
from sliders.train.trainer import Trainer


def found(root):
    return ScaleFolders.find(Data(folder_main=root, folders=FOUR_FOLDERS, scales=(-2, -1, 1, 2)), 32)


def write(root, **texts):
    """{"low/one": text}: `root/low/one.txt`."""
    for place, text in texts.items():
        path = root / f"{place}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def root(tmp_path):
    return make_scale_folders(tmp_path / "data")


PLACES = {
    "beside one scale's images": {"low/one": "a disc", "low/two": "two discs"},
    "beside different scales' images": {"low/one": "a disc", "veryhigh/two": "two discs"},
    "beside all of them, the same": {f"{f}/{n}": t for f in FOUR_FOLDERS for n, t in (("one", "a disc"), ("two", "two discs"))},
    "in captions/": {"captions/one": "a disc", "captions/two": "two discs"},
    "with line breaks, a byte order mark and spaces": {"low/one": "\ufeff a\n  disc \r\n", "low/two": "two discs"},
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_captions_are_found(root, place):
    write(root, **PLACES[place])
    data = found(root)
    assert dict(zip(data.names, data.captions, strict=True)) == {"one": "a disc", "two": "two discs"}
    assert data.ignored == ()
    table = data.table()
    assert "caption" in table and "a disc" in table and "two discs" in table


def test_without_captions_other_text_files_are_ignored_as_before(root):
    write(root, **{"low/readme": "hello"})
    data = found(root)
    assert data.captions == () and data.ignored == ("low/readme.txt",)


PROBLEMS = {
    "missing": ({"low/one": "a disc"}, ["two has no two.txt", "write one beside the image"]),
    "empty": ({"low/one": "a disc", "low/two": " \n"}, ["low/two.txt is empty"]),
    "different": ({"low/one": "a disc", "low/two": "x", "high/two": "y"}, ["low/two.txt", "'x'", "high/two.txt", "'y'", "keep one"]),
    "not text": ({"low/one": b"\xff\xfe\x00", "low/two": "x"}, ["low/one.txt is not UTF-8"]),
    "a control character": ({"low/one": "a\x07", "low/two": "x"}, ["low/one.txt is not a caption"]),
    "a book": ({"low/one": "a " * 20_000, "low/two": "x"}, ["low/one.txt is not a caption"]),
    "two at once": ({"low/one": "", "high/two": ""}, ["low/one.txt is empty", "high/two.txt is empty"]),
}  # fmt: skip


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_is_wrong_with_captions_is_named(root, problem):
    texts, said = PROBLEMS[problem]
    write(root, **texts)
    with pytest.raises(InputError) as error:
        found(root)
    assert [words for words in said if words not in str(error.value)] == []


words = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=20)


@given(words, words)
def test_a_caption_takes_its_place_in_every_prompt(caption, rest):
    rest = rest.replace("{", "").replace("}", "")
    prompts = PromptSet(target="", positive=f"{rest} {{caption}}", neutral="{caption}")
    assert prompts.texts(caption) == (caption, f"{rest} {caption}")


def test_captions_alone_where_all_prompts_are_empty():
    assert PromptSet(target="").texts("a disc") == ("a disc", "a disc")
    assert PromptSet(target="").texts("") == ("", "")
    assert PromptSet(target="a robe").texts("a disc") == ("", "a robe")
    assert PromptSet(target="{caption}, frosted").texts("a robe") == ("a robe", "a robe, frosted")
    assert PromptSet(target="{caption}, frosted", unconditional="bare").texts("a robe") == ("bare", "a robe, frosted")


def test_every_row_is_read_with_its_own_images_caption(root, tmp_path):
    write(root, **PLACES["in captions/"])
    prompts = [{"target": "{caption}, bright", "neutral": "{caption}", "resolution": 64, "batch_size": 3}]
    argv = write_experiment(tmp_path, data=root, prompts=prompts, train={"caption_dropout": 0.3})
    trainer = Trainer(make_plan(settings_of(argv)))
    embeds, captions = trainer.step.make_batch.prompt_embeds, {"one": "a disc", "two": "two discs"}
    assert set(embeds) == {"a disc", "a disc, bright", "two discs", "two discs, bright", ""}
    seen = set()
    for step in range(20):
        draw = trainer.step.draw(step)
        tokens = trainer.step.make_batch(draw).conditioning["tokens"]
        for row, found_tokens in zip(draw.rows, tokens, strict=True):
            caption = captions[trainer.data.names[row.image]]
            wanted = "" if not row.captioned else f"{caption}, bright" if row.positive else caption
            assert (found_tokens == embeds[wanted].tokens).all()
            seen.add(wanted)
    assert seen == set(embeds)


def test_a_placeholder_without_captions_is_refused_with_its_place(train_main, tmp_path, capsys):
    argv = write_experiment(tmp_path, prompts=[{"target": "{caption}, bright"}])
    assert train_main(argv) == 2
    error = capsys.readouterr().err
    assert "prompts.yaml, prompt set 1: {caption}" in error and "holds no captions" in error and "NAME.txt" in error


def test_captions_that_no_prompt_uses_are_noted(root, train_main, tmp_path, capsys):
    write(root, **PLACES["in captions/"])
    assert train_main(write_experiment(tmp_path, ["--dry_run"], data=root, prompts=[{"target": "a robe"}])) == 0
    out = capsys.readouterr().out
    assert "note: the 2 captions are not used: write {caption} into the prompts" in out
    assert "noise   timesteps 19 to 979, bias 2\n" in out


def test_a_run_is_not_resumed_with_other_captions(root, train_main, tmp_path, capsys):
    write(root, **PLACES["in captions/"])
    argv = write_experiment(tmp_path, data=root, train={"iterations": 2})
    assert train_main(argv) == 0
    write(root, **{"captions/one": "another disc"})
    assert train_main([*argv, "--resume", "--iterations", "3"]) == 2
    assert 'captions 1 was "a disc" and is now "another disc"' in capsys.readouterr().err


def test_the_file_counts_tags_as_kohyas_scripts_do(root, train_main, tmp_path):
    write(root, **{"low/one": "disc, red,  round", "low/two": "disc,blue"})
    argv = write_experiment(tmp_path, data=root, train={"iterations": 1})
    assert train_main(argv) == 0
    with safe_open(next((tmp_path / "models").rglob("*_last.safetensors")), framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["ss_tag_frequency"])["low"] == {"blue": 1, "disc": 2, "red": 1, "round": 1}
