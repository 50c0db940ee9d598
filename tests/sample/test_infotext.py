"""The parameters in a PNG, read as A1111 reads them: by the rules of its PNG Info tab, written down here a second time."""

import json
import re

import pytest
from PIL import Image
from sliders.sample.infotext import infotext, png_info
from sliders.sample.templates import Variant

# A key, a colon, and a value up to the next comma, or in JSON quotes
FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
SIZE = re.compile(r"(\d+)x(\d+)")
HASH = "0123456789abcdef"


def as_a1111_reads(text: str) -> dict[str, str]:
    """The last line are fields if it has three or more; a line that starts with `Negative prompt:` ends the prompt."""
    *lines, last = text.strip().split("\n")
    fields = FIELD.findall(last)
    if len(fields) < 3:
        lines, fields = [*lines, last], []
    prompts = {"Prompt": [], "Negative prompt": []}
    part = "Prompt"
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            part = "Negative prompt"
        prompts[part].append(line.removeprefix("Negative prompt:").strip())
    found = {name: "\n".join(lines) for name, lines in prompts.items()}
    for key, given in fields:
        value = json.loads(given) if given[:1] == given[-1:] == '"' else given
        if size := SIZE.fullmatch(value):
            found |= {f"{key}-1": size[1], f"{key}-2": size[2]}
        else:
            found[key] = value
    return {"RNG": "GPU", "Clip skip": "1"} | found  # what it assumes where nothing is written


def read_back(tmp_path, variant, negative, **fields):
    fields = {
        "Steps": 20,
        "Sampler": "DPM++ 2M Karras",
        "CFG scale": 7.5,
        "Seed": 2**63 - 1,
        "Size": "832x1216",
    } | fields
    hashes = {name: HASH * 4 for name, _ in variant.multipliers}
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=png_info(infotext(variant, negative, fields, hashes)))
    with Image.open(tmp_path / "x.png") as picture:
        return as_a1111_reads(picture.info["parameters"])


@pytest.mark.parametrize(
    "prompt",
    [
        "a robe",
        "",
        "a robe, red, (blue:1.3), 50 % wool",
        'a "robe" with a \\ and a sign that says: "Steps: 20, Sampler: Euler a, CFG scale: 7"',
        "Steps: 20, Sampler: Euler, Seed: 1, Size: 64x64",
        "Negative prompt: a robe",
        "a robe; Negative prompt: none",
        "röbe \N{ROBOT FACE} 礼服 a\u0301",
        "<b>&amp; {x} [a:b:0.5] BREAK",
    ],
)
@pytest.mark.parametrize(
    "negative", ["", "grey, blurred", 'a: b, "c"', "Negative prompt: x", "two\nlines\r\n\nNegative prompt: y"]
)
def test_a_web_ui_reads_odd_prompts_back(tmp_path, prompt, negative):
    found = read_back(tmp_path, Variant(prompt, (("size_last", 0.67), ("other", -1.0))), negative)
    tags = "<lora:size_last:0.67> <lora:other:-1>"
    assert (
        found.pop("Prompt").split() == (f"{tags} {prompt}" if prompt.startswith("Neg") else f"{prompt} {tags}").split()
    )
    assert found.pop("Negative prompt") == " ".join(negative.split())
    assert re.fullmatch(r"fractional-sliders [\d.]+\w*", found.pop("Version"))
    assert found == {
        "Steps": "20", "Sampler": "DPM++ 2M Karras", "CFG scale": "7.5", "Seed": str(2**63 - 1), "Size-1": "832", "Size-2": "1216",
        "RNG": "CPU", "Clip skip": "1", "Lora hashes": f"size_last: {HASH[:12]}, other: {HASH[:12]}",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["model", "a, b", "a: b", 'say "x"', "c:\\models\\x", " spaces ", "two\nlines", "", "64x64 px", "模型"]
)
def test_odd_names_of_models_are_quoted(tmp_path, name):
    found = read_back(tmp_path, Variant("a", (("s", 1.0),)), "", Model=name)
    assert found["Model"] == name and found["RNG"] == "CPU" and found["Size-1"] == "832"


def test_names_of_sliders_are_written_as_a1111_separates_them(tmp_path):
    found = read_back(tmp_path, Variant("a", (("x, calibrated", 1.0), ("b", 0.5))), "")
    assert dict(pair.split(": ") for pair in found["Lora hashes"].split(", ")) == {
        "x calibrated": HASH[:12],
        "b": HASH[:12],
    }
