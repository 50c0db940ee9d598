"""Captions find their images by the rule by which images find each other; what finds none is named."""

import os
import unicodedata

import pytest
from conftest import make_scale_folders
from sliders.config.prompts import PromptSet
from sliders.config.schema import Data, Preview
from sliders.data.dataset import ScaleFolders
from sliders.system.errors import InputError

PROMPTS = (PromptSet(target="", resolution=64),)
CAFE = {form: unicodedata.normalize(form, "Café") for form in ("NFC", "NFD")}


def found(root):
    return ScaleFolders.find(Data(folder_main=root, folders=("low", "high"), scales=(-1.0, 1.0)), 32)


def data_set(root, images, texts):
    make_scale_folders(root, folders=("low", "high"), names=images)
    for place, text in texts.items():
        (root / place).parent.mkdir(exist_ok=True)
        (root / place).write_text(text, encoding="utf-8")
    return root


MATCHES = {  # {caption file: image name}
    "low/B.txt": "b",
    "low/b.TXT": "b",
    "high/b.Txt": "B",
    f"low/{CAFE['NFC']}.txt": CAFE["NFD"],
    f"high/{CAFE['NFD'].upper()}.txt": CAFE["NFC"],
    "low/STRASSE.txt": "straße",
    "captions/X.txt": "x",
    "Captions/x.caption": "x",
    "CAPTIONS/x.png.txt": "X",
    "low/x.caption": "x",
    "low/x.CAPTION": "x",
    "low/x.png.txt": "x",
    "high/x.PNG.txt": "x",
    "low/x.jpg.caption": "x",
    "low/x.txt.txt": "x",
    "low/robe.1.txt": "robe.1",
    "low/robe.v2.png.txt": "robe.v2",
    "low/two words.txt": "Two Words",
}


@pytest.mark.parametrize("file", MATCHES)
def test_a_caption_belongs_to_the_image_of_its_name(tmp_path, file):
    data = found(data_set(tmp_path, (MATCHES[file],), {file: "a disc"}))
    assert data.captions == ("a disc",)
    assert data.ignored == () and data.captioning.strays == ()


def test_the_name_as_it_stands_goes_before_the_name_without_its_second_ending(tmp_path):
    data = found(data_set(tmp_path, ("x", "x.png"), {"low/x.png.txt": "whole", "low/x.txt": "short"}))
    assert dict(zip(data.names, data.captions, strict=True)) == {"x": "short", "x.png": "whole"}


def test_captions_of_one_image_under_two_names_must_agree(tmp_path):
    root = data_set(tmp_path, ("x",), {"low/x.txt": "a disc", "high/X.caption": "a ring"})
    with pytest.raises(InputError, match=r"X\.caption says 'a ring' but .*low/x\.txt says 'a disc'"):
        found(root)


@pytest.mark.parametrize("file", ["low/other.txt", "captions/1.txt", "low/x1.caption", "x.txt", "low/y.png.txt"])
def test_captions_that_fit_no_image_are_refused_if_there_are_no_others(tmp_path, file):
    root = data_set(tmp_path, ("x",), {file: "a disc"})
    with pytest.raises(InputError, match=r"no image has this name.*such as x\.txt") as caught:
        found(root)
    assert file.split("/")[-1] in str(caught.value)


@pytest.mark.parametrize(
    "file", ["low/readme.txt", "high/LICENSE.txt", "low/Notes on the set.txt", "captions/README.txt"]
)
def test_a_document_is_no_caption_and_is_told(tmp_path, file):
    data = found(data_set(tmp_path, ("x",), {file: "all about this data set"}))
    assert data.captions == ()
    assert any(file in remark for remark in data.remarks(PROMPTS))


def test_beside_captions_that_fit_others_are_named_in_a_note(tmp_path):
    data = found(data_set(tmp_path, ("x",), {"low/x.txt": "a disc", "low/other.txt": "a ring", "x.txt": "a ring"}))
    assert data.captions == ("a disc",)
    (note,) = [remark for remark in data.remarks(PROMPTS) if "belong to no image" in remark]
    assert "low/other.txt" in note and f"{tmp_path.name}/x.txt" in note


def test_a_missing_caption_is_told_with_the_files_that_may_be_meant_for_it(tmp_path):
    names = [f"n{i:02}" for i in range(12)]
    root = data_set(tmp_path, names, {"low/n00.txt": "a disc", "low/n_01.txt": "a ring"})
    with pytest.raises(InputError) as caught:
        found(root)
    (line,) = str(caught.value).splitlines()
    assert all(name in line for name in names[1:9]) and "and 3 more" in line and "low/n_01.txt" in line


@pytest.mark.parametrize("name", [".x.txt", "._x.txt"])
def test_hidden_files_are_no_captions(tmp_path, name):
    data = found(data_set(tmp_path, ("x",), {f"low/{name}": "\0"}))
    assert data.captions == () and data.captioning.strays == ()


PLAIN = ["a robe 👩‍🚀", "می‌خواهم", "soft\u00adhyphen", "日本語　テキスト", "👨‍👩‍👧‍👦 family", "ไทย"]


@pytest.mark.parametrize("text", PLAIN)
def test_joiners_and_other_scripts_are_plain_text(tmp_path, text):
    assert found(data_set(tmp_path, ("x",), {"low/x.txt": text})).captions == (" ".join(text.split()),)


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|startoftext|>", "<|EndOfText|>"])
def test_special_tokens_are_refused_wherever_a_prompt_comes_from(tmp_path, token):
    root = data_set(tmp_path, ("x",), {"low/x.txt": f"a disc {token} on a table"})
    with pytest.raises(InputError, match=r"low/x\.txt contains <\|"):
        found(root)
    for key in ("target", "positive", "neutral", "unconditional"):
        with pytest.raises(ValueError, match="does not read as text"):
            PromptSet.model_validate({"target": "", key: f"a {token} b"})
    with pytest.raises(ValueError, match="does not read as text"):
        Preview(prompts=(f"{token}",))


def test_a_huge_caption_is_refused_by_its_size(tmp_path):
    """A sparse file of 3 GB, which would take long to read."""
    root = data_set(tmp_path, ("x",), {"low/x.txt": ""})
    os.truncate(root / "low" / "x.txt", 3 * 10**9)
    with pytest.raises(InputError, match=r"low/x\.txt is not a caption \(it has 3,000,000,000 bytes"):
        found(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_a_pipe_is_no_caption(tmp_path):
    root = data_set(tmp_path, ("x",), {})
    os.mkfifo(root / "low" / "x.txt")
    with pytest.raises(InputError, match="a pipe or a device"):
        found(root)
